// A block's part of a recurrent product: resident weights times what other blocks hand over.
//
// The warps share the inner dimension: each has its own tiles of TILE_BYTES of every row, for all
// rows of the weights, so that nothing of the state is read twice. Their sums meet in shared
// memory.
#pragma once
#include <cstring>
#include "kinds.h"

namespace rnnkit {

constexpr int WARPS = 8, THREADS = 32 * WARPS;

// The sums of one unit and one row of the batch, side by side.
template <int GATES> struct alignas(GATES == 3 ? 4 : 4 * GATES) Gates {
    float of[GATES];
};

// How a block's weights come, so many of the tiles of a row's inner dimension at once, which take so
// many bytes each: first those that registers hold, by way of shared memory, since a loop over
// registers is unrolled, and all loads on their way at once would leave no registers. What one part
// takes there, every GPU has. Part 0, the last to come, are the tiles that stay there.
template <int HELD, int64_t TILE> struct Parts {
    static constexpr int64_t MOST_BYTES = 64 << 10;
    static constexpr int EACH = HELD * TILE <= MOST_BYTES ? HELD : int(MOST_BYTES / TILE);
    static_assert(EACH > 0, "a part is a tile at least");
    static constexpr int COUNT = (HELD + EACH - 1) / EACH;
    static constexpr int64_t BYTES = EACH * TILE;

    DEVICE static constexpr int of(int k) { return k / EACH + 1; }
    DEVICE static int first(int part) {
        const int first = (part - 1) * EACH;
        return part == 0 || first > HELD ? HELD : first;
    }
    DEVICE static int last(int part, int all) {
        const int last = part * EACH;
        return part == 0 ? all : last > HELD ? HELD : last;
    }
};

// ROW_TILES: tiles of weights one below the other, of each unit's GATES in turn. COLUMN_TILES: of
// the batch, at once. A warp's first tiles of the inner dimension, HELD of them, are in registers,
// the others in shared memory.
template <class Kind, int ROW_TILES, int COLUMN_TILES, int HELD, int GATES> struct Product {
    using S = typename Kind::S;
    static constexpr int DEPTH = TILE_BYTES / sizeof(S);
    static constexpr int ROWS = ROW_TILES * TILE_ROWS, COLUMNS = COLUMN_TILES * TILE_COLUMNS;
    // Of a column of one warp's sums in shared memory: apart by 4 banks more than a whole number of
    // 16, so that the lanes of a fragment meet in no bank.
    static constexpr int PITCH = ROWS + 4;
    static_assert(ROW_TILES % GATES == 0 && PITCH * sizeof(float) % alignof(Gates<GATES>) == 0);
    static constexpr int SUMS = WARPS * COLUMNS * PITCH;
    static_assert(HELD > 0 && HELD % Kind::batch == 0, "whole batches");

    Fragment held[HELD][ROW_TILES];
    uint4* rest;  // of this warp
    int all;      // tiles of the inner dimension

    // Of each warp: warp(), warp() + WARPS, ...; of some the last is past the end, and zero.
    DEVICE int tiles() const { return (all + WARPS - 1) / WARPS; }

    // How many tiles of an inner dimension each warp has, at most.
    HOST_DEVICE static int64_t most_tiles(int64_t depth) {
        return (depth + WARPS * DEPTH - 1) / (WARPS * DEPTH);
    }

    // Of a row of q.
    HOST_DEVICE static int64_t row_bytes(int64_t depth) {
        const int64_t batches = (most_tiles(depth) + Kind::batch - 1) / Kind::batch;
        return batches * Kind::batch * WARPS * TILE_BYTES;
    }

    // Of the shared memory of a block, the bytes that weights take to stay, and to come.
    static constexpr int64_t ALL_BYTES = WARPS * ROW_TILES * 32 * sizeof(Fragment);
    HOST_DEVICE static int64_t shared_bytes(int64_t depth) {
        const int64_t tiles = most_tiles(depth) - HELD;
        return tiles > 0 ? tiles * ALL_BYTES : 0;
    }
    using Parts = rnnkit::Parts<HELD, ALL_BYTES>;

    // Brings a part of the weights. weight(row, k, v): 16 bytes of a row from the k-th number on.
    template <class Weight>
    DEVICE void bring(int part, void* to, int64_t depth, const Weight& weight) {
        constexpr int size = ROW_TILES * 2 * 32;
        all = int((depth + DEPTH - 1) / DEPTH);
        const int first = Parts::first(part), last = Parts::last(part, tiles());
        rest = static_cast<uint4*>(to) + int64_t(last > first ? last - first : 0) * warp() * size;
        load_to(rest, first, last, weight);
#pragma unroll
        for (int k = 0; k < HELD; ++k)
            if (Parts::of(k) == part) take(rest + k % Parts::EACH * size, held[k]);
    }

    template <class Weight>
    DEVICE void load_to(uint4* to, int first, int last, const Weight& weight) const {
#pragma unroll 1
        for (int k = first; k < last; ++k)
#pragma unroll 1
            for (int m = 0; m < ROW_TILES; ++m) {
                const Fragment found = fragment(k, m, weight);
                uint4 halves[2];
                memcpy(halves, found.halves, sizeof halves);
                uint4* const place = to + ((k - first) * ROW_TILES + m) * 2 * 32 + lane();
                place[0] = halves[0];
                place[32] = halves[1];
            }
    }

    DEVICE static void take(const uint4* from, Fragment (&w)[ROW_TILES]) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
            const uint4* const place = from + m * 2 * 32 + lane();
            const uint4 halves[2] = {place[0], place[32]};
            memcpy(w[m].halves, halves, sizeof halves);
        }
    }

    template <class Weight> DEVICE Fragment fragment(int k, int m, const Weight& weight) const {
        constexpr int count = 16 / sizeof(S);
        S upper[count], lower[count];
        const int row = m * TILE_ROWS + lane() / 4;
        const int first = (k * WARPS + warp()) * DEPTH + lane() % 4 * count;
        weight(row, first, upper);
        weight(row + 8, first, lower);
#pragma unroll
        for (int j = 0; Kind::rounds && j < count; ++j) {
            upper[j] = operand<Kind>(upper[j]);
            lower[j] = operand<Kind>(lower[j]);
        }
        Fragment found;
        uint32_t* const words = reinterpret_cast<uint32_t*>(found.halves);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            memcpy(words + Kind::place(false, k), upper + k * count / 4, 4);
            memcpy(words + Kind::place(true, k), lower + k * count / 4, 4);
        }
        return found;
    }

    // This warp's sums for COLUMNS rows of q, `stride` bytes apart, to `sums`. A row of q has the
    // values of whole batches of tiles.
    template <class Exchange>
    DEVICE void multiply(const char* q, int64_t stride, float* sums) const {
        if (Kind::skips && warp() >= all) return;
        float total[ROW_TILES][COLUMN_TILES][Kind::sums] = {};
        constexpr int batch = Kind::batch;
#pragma unroll
        for (int k = 0; k < HELD; k += batch)
            if (k < tiles()) {
                typename Kind::Operand v[batch][COLUMN_TILES];
#pragma unroll
                for (int i = 0; i < batch; ++i) operands<Exchange>(q, stride, k + i, v[i]);
#pragma unroll
                for (int i = 0; i < batch; ++i)
                    if (k + i < tiles()) add(held[k + i], v[i], total);
            }
#pragma unroll(Kind::batch)
        for (int k = HELD; k < tiles(); ++k) {
            typename Kind::Operand v[COLUMN_TILES];
            operands<Exchange>(q, stride, k, v);
            Fragment w[ROW_TILES];
            take(rest + (k - HELD) * ROW_TILES * 2 * 32, w);
            add(w, v, total);
        }
        put(total, sums + warp() * COLUMNS * PITCH);
    }

    template <class Exchange>
    DEVICE static void operands(const char* q, int64_t stride, int k,
                                typename Kind::Operand (&v)[COLUMN_TILES]) {
        const char* const tile = q + int64_t(k * WARPS + warp()) * TILE_BYTES;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
            v[n] = Kind::template load<Exchange>(tile + n * TILE_COLUMNS * stride, stride);
    }

    DEVICE static void add(const Fragment (&w)[ROW_TILES],
                           const typename Kind::Operand (&v)[COLUMN_TILES],
                           float (&total)[ROW_TILES][COLUMN_TILES][Kind::sums]) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n) Kind::multiply(total[m][n], w[m], v[n]);
    }

    DEVICE static void put(const float (&total)[ROW_TILES][COLUMN_TILES][Kind::sums], float* sums) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m += GATES)
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n) {
                float found[GATES][4];
#pragma unroll
                for (int g = 0; g < GATES; ++g) Kind::finish(total[m + g][n], found[g]);
                // Of two units, each in two columns.
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    Gates<GATES> v;
#pragma unroll
                    for (int g = 0; g < GATES; ++g) v.of[g] = found[g][k];
                    const int unit = m / GATES * TILE_ROWS + lane() / 4 + k / 2 * 8;
                    *place(sums, unit, n * TILE_COLUMNS + lane() % 4 * 2 + k % 2) = v;
                }
            }
    }

    DEVICE static Gates<GATES>* place(float* sums, int unit, int column) {
        return reinterpret_cast<Gates<GATES>*>(sums + column * PITCH + unit * GATES);
    }

    // Where it serves for nothing but this product, so that idle warps' sums stay zero.
    DEVICE void clear(float* sums) const {
        if (Kind::skips && warp() >= all)
            for (int i = lane(); i < COLUMNS * PITCH; i += 32)
                sums[warp() * COLUMNS * PITCH + i] = 0;
    }

    // What all warps together found of a unit, once they have met; if they are not `cleared`, of
    // those that are not idle.
    template <bool CLEARED>
    DEVICE void sum(float* sums, int unit, int column, float (&total)[GATES]) const {
#pragma unroll
        for (int g = 0; g < GATES; ++g) total[g] = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w)
            if (CLEARED || w < all) {
                const Gates<GATES> v = *place(sums + w * COLUMNS * PITCH, unit, column);
#pragma unroll
                for (int g = 0; g < GATES; ++g) total[g] += v.of[g];
            }
    }
};

}  // namespace rnnkit
