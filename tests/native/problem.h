// Random problems for the library's functions.
#pragma once
#include <cmath>
#include <random>
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/kernels.h"
#include "cpu/vector.h"
#include "memory.h"

namespace test {

using rnnkit::RNNKIT_ISA::bfloat16;
using S = RNNKIT_STORAGE;
using R = rnnkit::RNNKIT_ISA::Real<S>;

struct Cell {
    const char* name;
    int gates, states, rows, shared;
    bool is_rnn, normalises;
};

template <class C> constexpr Cell cell(const char* name) {
    return {name, C::gates, C::states, C::rows, C::shared, C::gates == 1, C::normalises};
}

// Only the counts of the cells are wanted.
struct NoMath {
    using Value = float;
};
constexpr Cell CELLS[] = {
    cell<rnnkit::Rnn<NoMath, false>>("rnn_tanh"),
    cell<rnnkit::Rnn<NoMath, true>>("rnn_relu"),
    cell<rnnkit::Gru<NoMath>>("gru"),
    cell<rnnkit::GruBefore<NoMath>>("gru_before"),
    cell<rnnkit::Lstm<NoMath, false, false, false>>("lstm"),
    cell<rnnkit::Lstm<NoMath, false, true, false>>("lstm_norm"),
    cell<rnnkit::Lstm<NoMath, false, true, true>>("lstm_norm_carry"),
    cell<rnnkit::Lstm<NoMath, true, false, false>>("lstm_peephole"),
    cell<rnnkit::Lstm<NoMath, true, true, false>>("lstm_peephole_norm"),
    cell<rnnkit::Lstm<NoMath, true, true, true>>("lstm_peephole_norm_carry"),
};

class Random {
    std::mt19937_64 engine;

public:
    explicit Random(uint64_t seed) : engine(seed) {}

    int64_t below(int64_t count) { return int64_t(engine() % uint64_t(count)); }
    bool one_of(int64_t count) { return below(count) == 0; }
    template <class T, size_t COUNT> T among(const T (&values)[COUNT]) {
        return values[below(COUNT)];
    }
    // In [-1, 1), of few enough bits for every type.
    float value() { return float(int64_t(engine() >> 56) - 128) / 128; }
};

template <class T> T converted(float value) { return T(value); }
template <> inline bfloat16 converted(float value) {
    return {uint16_t(rnnkit::RNNKIT_ISA::bits_of<uint32_t>(value) >> 16)};
}

inline bool finite(float value) { return std::isfinite(value); }
inline bool finite(double value) { return std::isfinite(value); }
inline bool finite(bfloat16 value) { return (value.bits & 0x7f80) != 0x7f80; }

struct Sizes {
    int64_t T, B, N, H, I;
};

// Some are long or have many rows: more than the kernels compute at a time.
inline Sizes some_sizes(Random& random) {
    const int64_t units[] = {1, 3, 17, 37, 70}, inputs[] = {1, 5, 33}, kind = random.below(10);
    return {kind == 0 ? 30 : 1 + random.below(6), kind == 1 ? 110 : 1 + random.below(20),
            1 + random.below(3), random.among(units), random.among(inputs)};
}

// A result of a call, all of which must be written; `check` looks for values that are not finite.
struct Result {
    const char* name;
    const void* data;
    size_t bytes;
    bool (*check)(const void* data, size_t bytes);
};

template <class T> bool all_finite(const void* data, size_t bytes) {
    for (size_t k = 0; k < bytes / sizeof(T); ++k)
        if (!finite(static_cast<const T*>(data)[k])) return false;
    return true;
}

// A scan and its backward, or a step, with all their arguments: the same seed gives the same ones.
class Problem {
    Memory memory;
    Random random;

    bool maybe() { return random.one_of(2); }

    template <class T> T* values(int64_t count, float scale = 1) {
        T* data = static_cast<T*>(memory.take(count * sizeof(T)));
        for (int64_t k = 0; k < count; ++k) data[k] = converted<T>(scale * random.value());
        return data;
    }

    template <class T> T* result(const char* name, int64_t count, bool in_full = true) {
        T* data = static_cast<T*>(memory.take(count * sizeof(T)));
        results.push_back({name, data, count * sizeof(T), in_full ? all_finite<T> : nullptr});
        return data;
    }

    // Strides of a tensor whose dimensions are laid out in any order; those of size 0 are repeated.
    // Returns the number of elements.
    template <size_t RANK>
    int64_t lay_out(const int64_t (&sizes)[RANK], int64_t* const (&strides)[RANK], int64_t inner) {
        int64_t total = inner;
        const size_t first = random.below(RANK);
        for (size_t k = 0; k < RANK; ++k) {
            const size_t dimension = (first + k) % RANK;
            *strides[dimension] = sizes[dimension] == 0 ? 0 : total;
            if (sizes[dimension] > 0) total *= sizes[dimension];
        }
        return total;
    }

    bool valid(int64_t t, int64_t b, int64_t n) const {
        return !a.lengths || t < a.lengths[b * a.lengths_b + n * a.lengths_n];
    }

    // NaN where `of` gives the place of a step that lies past its row's length.
    template <class Place> void hide(const void* data, int64_t width, Place of, size_t bytes) {
        for (int64_t t = 0; data && t < a.T; ++t)
            for (int64_t b = 0; b < a.B; ++b)
                for (int64_t n = 0; n < a.N; ++n) {
                    char* at = static_cast<char*>(const_cast<void*>(data)) + of(t, b, n) * bytes;
                    if (!valid(t, b, n)) std::memset(at, 0xff, width * bytes);
                }
    }

public:
    rnnkit::Arguments a = {};
    std::vector<Result> results;

    Problem(const Cell& cell, const Sizes& sizes, uint64_t seed, bool fenced)
        : memory(fenced), random(seed) {
        a.T = sizes.T, a.B = sizes.B, a.N = sizes.N, a.H = sizes.H;
        a.runs = maybe() ? a.N : 1;
        a.reverse = random.below(1 << a.runs);
        a.norm = maybe() ? 0 : 1 + random.below(2);
        a.of_sum = a.norm && cell.is_rnn;
        a.eps = 1e-5;
        sequences();
        parameters(cell);
        const bool layer = maybe();
        a.I = layer ? sizes.I : 0;
        masks(cell);
        inputs(cell, layer);
        forward(cell, layer);
        backward(cell, layer);
    }

    // Of rnnkit_step.
    static Problem step(const Cell& cell, const Sizes& sizes, uint64_t seed, bool fenced) {
        return Problem(seed, fenced, cell, sizes);
    }

private:
    Problem(uint64_t seed, bool fenced, const Cell& cell, const Sizes& sizes)
        : memory(fenced), random(seed) {
        a.B = sizes.B, a.H = sizes.H, a.I = sizes.I;
        const int64_t width = cell.gates * a.H, plane = a.B * a.H;
        const bool biases = maybe();
        a.input = values<S>(a.B * a.I);
        a.w_ih = values<S>(width * a.I);
        a.w = values<S>(width * a.H);
        a.b_ih = values<S>(biases ? width : 0);
        a.b = values<S>(biases ? width : 0);
        a.p = values<S>(cell.rows * a.H);
        if (maybe()) {
            a.s0 = values<S>(plane);
            a.cells = values<S>((cell.states - 1) * plane);
        }
        a.output = result<S>("h", plane);
        a.last = result<S>("c", (cell.states - 1) * plane);
    }

    void sequences() {
        if (maybe()) {
            const int64_t sizes[] = {a.B, maybe() ? a.N : 0};
            const int64_t count = lay_out(sizes, {&a.lengths_b, &a.lengths_n}, 1);
            auto* lengths = static_cast<int64_t*>(memory.take(count * sizeof(int64_t)));
            for (int64_t k = 0; k < count; ++k) lengths[k] = random.below(a.T + 3) - 1;
            a.lengths = lengths;
        }
        if (maybe()) {
            const int64_t sizes[] = {a.T, a.B, maybe() ? a.N : 0};
            const int64_t count = lay_out(sizes, {&a.resets_t, &a.resets_b, &a.resets_n}, 1);
            auto* resets = static_cast<uint8_t*>(memory.take(count));
            for (int64_t k = 0; k < count; ++k) resets[k] = random.one_of(3);
            a.resets = resets;
        }
    }

    void parameters(const Cell& cell) {
        const int64_t width = cell.gates * a.H, rows = (a.norm ? cell.gates : 0) + cell.rows;
        a.w = values<S>(a.N * width * a.H, 1 / std::sqrt(float(a.H)));
        a.b = maybe() ? values<S>(a.N * width) : nullptr;
        a.s0 = maybe() ? values<S>(cell.states * a.B * a.N * a.H) : nullptr;
        a.d = maybe() ? values<S>(a.B * a.N * a.H) : nullptr;
        a.p = values<S>(a.N * rows * a.H);
    }

    void masks(const Cell& cell) {
        if (maybe()) return;
        a.E = 1 + random.below(cell.states);
        a.m_bytes = maybe();
        const int64_t steps = maybe() ? a.T : 0, rows = steps ? a.B : 0;
        const int64_t sizes[] = {steps, rows, a.N, a.E};
        const int64_t count = lay_out(sizes, {&a.m_t, &a.m_b, &a.m_n, &a.m_e}, a.H);
        if (!a.m_bytes) {
            a.m = values<S>(count);
            return;
        }
        auto* m = static_cast<uint8_t*>(memory.take(count));
        for (int64_t k = 0; k < count; ++k) m[k] = random.one_of(2);
        a.m = m;
    }

    void inputs(const Cell& cell, bool layer) {
        const int64_t width = cell.gates * a.H, steps = a.T * a.B;
        if (!layer) {
            const int64_t sizes[] = {a.T, a.B, a.N, cell.gates};
            a.x = values<S>(lay_out(sizes, {&a.x_t, &a.x_b, &a.x_n, &a.x_g}, a.H));
            for (int64_t g = 0; g < cell.gates; ++g)
                hide(a.x, a.H, [&](int64_t t, int64_t b, int64_t n) {
                    return t * a.x_t + b * a.x_b + n * a.x_n + g * a.x_g;
                }, sizeof(S));
            return;
        }
        a.x_g = a.H, a.x_n = width, a.x_b = a.N * width, a.x_t = a.B * a.x_b;
        a.x = result<S>("x", steps * a.N * width, false);
        a.input = values<S>(steps * a.I);
        a.w_ih = values<S>(a.N * width * a.I);
        a.b_ih = maybe() ? values<S>(a.N * width) : nullptr;
        a.summed = a.norm || sizeof(S) != sizeof(R) ? 0 : cell.shared;
        a.activated = a.summed > 0 && maybe();
        if (a.norm && !a.of_sum && maybe()) {
            a.x_gain = values<S>(a.N * width);
            a.x_scales = result<R>("x_scales", steps * a.N * cell.gates, false);
        }
        for (int64_t t = 0; t < a.T; ++t)
            for (int64_t b = 0; b < a.B; ++b) {
                bool live = false;
                for (int64_t n = 0; n < a.N; ++n) live = live || valid(t, b, n);
                S* row = static_cast<S*>(const_cast<void*>(a.input)) + (t * a.B + b) * a.I;
                if (!live) std::memset(row, 0xff, a.I * sizeof(S));
            }
    }

    void forward(const Cell& cell, bool layer) {
        const int64_t steps = a.T * a.B * a.N, rows = a.B * a.N;
        a.output = result<S>("output", steps * a.H);
        a.cells = result<S>("cells", (cell.states - 1) * steps * a.H);
        a.last = result<S>("last", cell.states * rows * a.H);
        if (!layer && maybe()) return;
        a.products = result<R>("products", steps * (cell.gates - a.summed) * a.H);
        a.scales = result<R>("scales", a.norm ? steps * cell.gates : 0);
    }

    void backward(const Cell& cell, bool layer) {
        const int64_t steps = a.T * a.B * a.N, rows = a.B * a.N, width = cell.gates * a.H;
        const auto place = [&](int64_t t, int64_t b, int64_t n) {
            return ((t * a.B + b) * a.N + n) * a.H;
        };
        if (maybe()) a.doutput = values<S>(steps * a.H);
        if (maybe()) a.dcells = values<S>((cell.states - 1) * steps * a.H);
        if (maybe()) a.dlast = values<S>(cell.states * rows * a.H);
        hide(a.doutput, a.H, place, sizeof(S));
        hide(a.dcells, a.H, place, sizeof(S));
        a.dw = result<S>("dw", a.N * width * a.H);
        if (!layer || a.b) a.db = result<S>("db", a.N * width);
        if (!layer || a.s0) a.ds0 = result<S>("ds0", cell.states * rows * a.H);
        a.dp = result<S>("dp", a.N * ((a.norm ? cell.gates : 0) + cell.rows) * a.H);
        if (!layer) {
            a.dx = result<S>("dx", steps * width);
            return;
        }
        if (maybe()) a.dinput = result<S>("dinput", a.T * a.B * a.I);
        if (maybe()) return;
        a.dw_ih = result<S>("dw_ih", a.N * width * a.I);
        if (a.b_ih) a.db_ih = result<S>("db_ih", a.N * width);
        if (a.x_gain) a.dx_gain = result<S>("dx_gain", a.N * width);
    }
};

}  // namespace test
