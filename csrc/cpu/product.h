// Matrix products of few rows with packed weights: c = init + a @ w.
//
// The weights' columns are packed into panels of as many vectors as the registers hold sums for;
// every sum runs over k in its natural order, so that no result depends on which rows or columns
// are computed together.
#pragma once
#include "memory.h"
#include "vector.h"

namespace rnnkit {
namespace RNNKIT_ISA {

constexpr int MOST_ROWS = 6;
constexpr int MOST_VECTORS = REGISTERS == 32 ? 4 : 2;
template <class R> constexpr int PANEL = MOST_VECTORS * LANES<R>;

// (K, N) in panels of PANEL columns, each dense over k; the last is narrower by whole vectors. There
// is room for as many k.
template <class R> struct Panels {
    R* data;
    int64_t K, N, room;

    Panels(R* data, int64_t K, int64_t N, int64_t room) : data(data), K(K), N(N), room(room) {}
    Panels(R* data, int64_t K, int64_t N) : Panels(data, K, N, K) {}

    static int64_t size(int64_t K, int64_t N) { return K * vectors(N) * LANES<R>; }
    static int64_t vectors(int64_t columns) { return (columns + LANES<R> - 1) / LANES<R>; }

    int64_t count() const { return (N + PANEL<R> - 1) / PANEL<R>; }
    int64_t columns(int64_t panel) const {
        const int64_t left = N - panel * PANEL<R>;
        return left < PANEL<R> ? left : PANEL<R>;
    }
    R* at(int64_t panel) const { return data + panel * PANEL<R> * room; }

    // Fills one panel from elements (k, n) at source[k * k_stride + n * n_stride].
    template <class S>
    void pack(int64_t panel, const S* source, int64_t k_stride, int64_t n_stride) const {
        const int64_t filled = columns(panel), width = vectors(filled) * LANES<R>;
        R* to = at(panel);
        source += panel * PANEL<R> * n_stride;
        if (n_stride == 1) {
            for (int64_t k = 0; k < K; ++k)
                for (int64_t n = 0; n < width; n += LANES<R>)
                    store_whole(to + k * width + n, load(source + k * k_stride + n,
                                                         Part<R>(filled - n)));
            return;
        }
        for (int64_t n = 0; n < width; ++n)
            for (int64_t k = 0; k < K; ++k)
                to[k * width + n] = n < filled ? real(source[k * k_stride + n * n_stride]) : R(0);
    }

    static R real(R value) { return value; }
    static R real(bfloat16 value) { return R(bits_of<float>(uint32_t(value.bits) << 16)); }
};

enum class Init { ZERO, ROW, SUM };

// One tile: row i of a is at a[i][k * step], row i of c at c[i]; `init` is a row of c or null.
template <class R> struct Tile {
    const R* const* a;
    int64_t step, K;
    const R* w;
    R* const* c;
    int64_t column, columns;
    Init init;
    const R* row;
};

template <class R, int ROWS, int VECTORS> void multiply(const Tile<R>& tile) {
    using V = Vector<R>;
    V sums[ROWS][VECTORS];
    const Part<R> last(tile.columns - (VECTORS - 1) * LANES<R>), all(LANES<R>);
    // Unrolled, or the sums would not stay in registers.
    const auto each = [&](auto&& function) INLINE_LAMBDA {
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; ++j)
                function(i, j, tile.column + j * LANES<R>, j == VECTORS - 1 ? last : all);
    };
    if (tile.init == Init::SUM)
        each([&](int i, int j, int64_t at, Part<R> part) INLINE_LAMBDA {
            sums[i][j] = load(tile.c[i] + at, part);
        });
    else if (tile.init == Init::ROW)
        each([&](int i, int j, int64_t at, Part<R> part) INLINE_LAMBDA {
            sums[i][j] = load(tile.row + at, part);
        });
    else
        each([&](int i, int j, int64_t, Part<R>) INLINE_LAMBDA { sums[i][j] = V{}; });
    const R* a[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) a[i] = tile.a[i];
    const R* w = tile.w;
    const int64_t step = tile.step, end = tile.K * step;
    for (int64_t k = 0; k < end; k += step) {
        V row[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j)
            row[j] = *reinterpret_cast<const V*>(w + j * LANES<R>);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            const R value = a[i][k];
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; ++j) sums[i][j] += value * row[j];
        }
        w += VECTORS * LANES<R>;
    }
    each([&](int i, int j, int64_t at, Part<R> part) INLINE_LAMBDA {
        store(tile.c[i] + at, sums[i][j], part);
    });
}

template <class R> using Multiply = void (*)(const Tile<R>&);

template <class R, int ROWS> Multiply<R> multiply_of(int64_t vectors) {
    if constexpr (MOST_VECTORS == 4) {
        if (vectors == 4) return multiply<R, ROWS, 4>;
        if (vectors == 3) return multiply<R, ROWS, 3>;
    }
    return vectors == 2 ? multiply<R, ROWS, 2> : multiply<R, ROWS, 1>;
}

template <class R> Multiply<R> multiply_of(int64_t rows, int64_t vectors) {
    switch (rows) {
        case 1: return multiply_of<R, 1>(vectors);
        case 2: return multiply_of<R, 2>(vectors);
        case 3: return multiply_of<R, 3>(vectors);
        case 4: return multiply_of<R, 4>(vectors);
        case 5: return multiply_of<R, 5>(vectors);
        default: return multiply_of<R, 6>(vectors);
    }
}

// c[i] = init + a[i] @ w for `rows` rows and the columns of some panels.
template <class R>
void product(const Panels<R>& w, int64_t begin, int64_t end, int64_t rows, const R* const* a,
             int64_t step, R* const* c, Init init, const R* row) {
    const int64_t tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t columns = w.columns(panel), vectors = Panels<R>::vectors(columns);
        // Tiles of even height: a last one of few rows would leave the units idle.
        for (int64_t tile = 0, i = 0; tile < tiles; ++tile) {
            const int64_t next = rows * (tile + 1) / tiles;
            const Tile<R> work = {a + i, step, w.K, w.at(panel), c + i, panel * PANEL<R>,
                                  columns, init, row};
            multiply_of<R>(next - i, vectors)(work);
            i = next;
        }
    }
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
