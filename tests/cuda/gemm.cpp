// cuBLAS's product, as csrc/cuda/gemm.h declares it, in single precision at least. What cuBLAS
// refuses is refused with its status; where beta is zero, c is not read.
#include "cuda/gemm.h"

namespace rnnkit {
namespace emulation {
namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

struct Matrix {
    int op;
    const void* data;
    int type, pitch;
    long long stride;

    // Of op(matrix) in the k-th matrix.
    int64_t place(int k, int64_t row, int64_t column) const {
        return k * stride + (op == cublas::AS_IS ? row + column * pitch : column + row * pitch);
    }
    bool holds(int rows, int columns) const {
        return (op == cublas::AS_IS || op == cublas::TRANSPOSED) && rows >= 0 && columns >= 0
               && pitch >= 1 && pitch >= (op == cublas::AS_IS ? rows : columns);
    }
};

struct Call {
    int m, n, k, count, compute;
    const void *alpha, *beta;
    Matrix a, b, c;
};

template <class Kind> typename Kind::Sum value(const Matrix& from, int64_t place) {
    const typename Kind::S found = static_cast<const typename Kind::S*>(from.data)[place];
    if constexpr (Kind::compute == cublas::FAST_TF32) return round_tf32(found);
    else return typename Kind::Sum(found);
}

template <class Kind> bool is(const Call& call) {
    return call.compute == Kind::compute && call.a.type == Kind::type && call.b.type == Kind::type
           && call.c.type == Kind::sum_type;
}

template <class Kind> int compute(const Call& call, void* to) {
    using V = typename Kind::Sum;
    const V alpha = *static_cast<const V*>(call.alpha), beta = *static_cast<const V*>(call.beta);
    for (int64_t i = 0; i < int64_t(call.count) * call.m * call.n; ++i) {
        const int row = i % call.m, column = i / call.m % call.n, at = i / call.m / call.n;
        V sum = 0;
        for (int k = 0; k < call.k; ++k)
            sum += value<Kind>(call.a, call.a.place(at, row, k))
                   * value<Kind>(call.b, call.b.place(at, k, column));
        V& c = static_cast<V*>(to)[call.c.place(at, row, column)];
        c = beta == 0 ? alpha * sum : alpha * sum + beta * c;
    }
    return SUCCESS;
}

}  // namespace
}  // namespace emulation
}  // namespace rnnkit

using namespace rnnkit;
using namespace rnnkit::emulation;

extern "C" int emulation_gemm(void*, int op_a, int op_b, int m, int n, int k, const void* alpha,
                              const void* a, int a_type, int a_pitch, long long a_stride,
                              const void* b, int b_type, int b_pitch, long long b_stride,
                              const void* beta, void* c, int c_type, int c_pitch,
                              long long c_stride, int count, int compute_type, int) {
    const Call call = {m, n, k, count, compute_type, alpha, beta,
                       {op_a, a, a_type, a_pitch, a_stride},
                       {op_b, b, b_type, b_pitch, b_stride},
                       {cublas::AS_IS, c, c_type, c_pitch, c_stride}};
    if (count < 0 || !call.a.holds(m, k) || !call.b.holds(k, n) || !call.c.holds(m, n))
        return INVALID_VALUE;
    if (is<Half>(call)) return compute<Half>(call, c);
    if (is<Bfloat16>(call)) return compute<Bfloat16>(call, c);
    if (is<Tf32>(call)) return compute<Tf32>(call, c);
    if (is<Ieee>(call)) return compute<Ieee>(call, c);
    if (is<Double>(call)) return compute<Double>(call, c);
    return NOT_SUPPORTED;
}

static_assert(std::is_same_v<decltype(&emulation_gemm), Gemm>, "");
