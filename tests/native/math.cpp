// The functions of csrc/cpu/math.h on arrays, and their errors.
#include <cfloat>
#include <cmath>
#include <limits>
#include "cpu/math.h"

namespace test {

using namespace rnnkit::RNNKIT_ISA;

enum Function { SIGMOID, TANH, RELU };

template <class R> Vector<R> value_of(int64_t function, Vector<R> x) {
    if (function == SIGMOID) return Math<R>::sigmoid(x);
    return function == TANH ? Math<R>::tanh(x) : Math<R>::relu(x);
}

template <class R> void apply(int64_t function, const R* x, R* y, int64_t count) {
    for (int64_t j = 0; j < count; j += LANES<R>) {
        const Part<R> part(count - j);
        store(y + j, value_of<R>(function, load(x + j, part)), part);
    }
}

long double exact(int64_t function, long double x) {
    return function == SIGMOID ? 1 / (1 + std::exp(-x)) : std::tanh(x);
}

// The distance of two neighbours of R at this size; none are nearer than the smallest normal ones.
template <class R> long double spacing(long double value) {
    int exponent;
    std::frexp(value, &exponent);
    if (exponent < std::numeric_limits<R>::min_exponent)
        exponent = std::numeric_limits<R>::min_exponent;
    return std::ldexp(1.0L, exponent - std::numeric_limits<R>::digits);
}

// The largest error in such units, and where it is. Results below the smallest normal number may be
// anything between that and zero.
template <class R> double worst(int64_t function, const R* x, int64_t count, double* where) {
    double most = 0;
    for (int64_t j = 0; j < count; ++j) {
        R y;
        apply(function, x + j, &y, 1);
        const long double expected = exact(function, x[j]), size = std::fabs(expected);
        if (size < std::numeric_limits<R>::min() && function != TANH && y >= 0
            && y <= std::numeric_limits<R>::min())
            continue;
        const double error = double(std::fabs(y - expected) / spacing<R>(expected));
        if (!(error <= most)) most = error, *where = x[j];
    }
    return most;
}

}  // namespace test

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void apply_float32(int64_t f, const float* x, float* y, int64_t n) {
    test::apply(f, x, y, n);
}
EXPORT void apply_float64(int64_t f, const double* x, double* y, int64_t n) {
    test::apply(f, x, y, n);
}
EXPORT double worst_float32(int64_t f, const float* x, int64_t n, double* where) {
    return test::worst(f, x, n, where);
}
EXPORT double worst_float64(int64_t f, const double* x, int64_t n, double* where) {
    return test::worst(f, x, n, where);
}
// Of the type that is taken for exact.
EXPORT int64_t exact_digits() { return LDBL_MANT_DIG; }
