// A block's part of a recurrent product: resident weights times what other blocks hand over.
//
// The warps share the inner dimension: each has its own tiles of TILE_BYTES of every row, for all
// rows of the weights, so that nothing of the state is read twice. Their sums meet in shared memory.
//
// The inner dimension may be in any order, if it is the same for both factors. Here each lane takes
// 16 consecutive bytes of a row where the fragments of mma<S> have four words far apart: so what is
// handed over lies in its natural order and goes straight from L2 to registers.
#pragma once
#include <cstring>
#include "math.h"

namespace rnnkit {

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int TILE_BYTES = 64;    // of a row: what a warp multiplies at once
constexpr int TILE_ROWS = 16;     // of weights
constexpr int TILE_COLUMNS = 8;   // rows of the batch

// A lane's part of a tile of weights: 16 bytes of row lane() / 4, and of the one 8 below.
struct Fragment {
    uint32_t upper[4], lower[4];
};

// Products by the matrix units, summed in float. float itself is rounded to TF32 by who makes the
// operands.
template <class T> struct MatrixUnits {
    using S = T;
    static constexpr bool rounds = sizeof(S) == 4;
    static constexpr int sums = 4;
    static constexpr int registers = 128;  // of a thread, for weights
    static constexpr int batch = 2;        // tiles of q that are loaded together

    struct Operand {
        uint4 words;
    };

    // Of the row that this lane feeds; `rows` is the tile's first, and they are `stride` bytes apart.
    DEVICE static Operand load(const char* rows, int64_t stride) {
        return {load_l2(reinterpret_cast<const uint4*>(rows + lane() / 4 * stride
                                                       + lane() % 4 * 16))};
    }

    DEVICE static void multiply(float (&sum)[sums], const Fragment& w, const Operand& v) {
        const uint32_t first[4] = {w.upper[0], w.lower[0], w.upper[1], w.lower[1]};
        const uint32_t second[4] = {w.upper[2], w.lower[2], w.upper[3], w.lower[3]};
        const uint32_t low[2] = {v.words.x, v.words.y}, high[2] = {v.words.z, v.words.w};
        mma<S>(sum, first, low);
        mma<S>(sum, second, high);
    }

    DEVICE static void finish(const float (&sum)[sums], float (&found)[4]) {
        for (int k = 0; k < 4; ++k) found[k] = sum[k];
    }
};

// Products in full single precision, by the same lanes as those of the matrix units. A lane sums
// over its own part of the inner dimension for all columns of a tile; `finish` adds up four lanes'.
struct FullPrecision {
    using S = float;
    static constexpr bool rounds = false;
    static constexpr int sums = 2 * TILE_COLUMNS;
    static constexpr int registers = 64, batch = 1;

    struct Operand {
        uint4 words[TILE_COLUMNS];
    };

    DEVICE static Operand load(const char* rows, int64_t stride) {
        Operand found;
#pragma unroll
        for (int n = 0; n < TILE_COLUMNS; ++n)
            found.words[n] = load_l2(
                reinterpret_cast<const uint4*>(rows + n * stride + lane() % 4 * 16));
        return found;
    }

    DEVICE static float real(uint32_t bits) {
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    DEVICE static void multiply(float (&sum)[sums], const Fragment& w, const Operand& v) {
#pragma unroll
        for (int n = 0; n < TILE_COLUMNS; ++n) {
            const uint4 u = v.words[n];
            const float q[4] = {real(u.x), real(u.y), real(u.z), real(u.w)};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                sum[n] += real(w.upper[k]) * q[k];
                sum[TILE_COLUMNS + n] += real(w.lower[k]) * q[k];
            }
        }
    }

    // Of both rows, columns 2j and 2j + 1 for the lane j of four.
    DEVICE static void finish(const float (&sum)[sums], float (&found)[4]) {
        const bool high = lane() & 2, odd = lane() & 1;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float half[4];
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const float low = sum[row * TILE_COLUMNS + n];
                const float up = sum[row * TILE_COLUMNS + 4 + n];
                half[n] = (high ? up : low) + shuffle_xor(high ? low : up, 2);
            }
#pragma unroll
            for (int n = 0; n < 2; ++n)
                found[2 * row + n]
                    = (odd ? half[2 + n] : half[n]) + shuffle_xor(odd ? half[n] : half[2 + n], 1);
        }
    }
};

// A value as an operand.
template <class Kind> DEVICE typename Kind::S operand(float v) {
    if constexpr (Kind::rounds) return round_tf32(v);
    else return narrow<typename Kind::S>(v);
}

// ROW_TILES: tiles of weights one below the other. COLUMN_TILES: of the batch, at once. A warp's
// first tiles of the inner dimension are in registers, the others in shared memory.
template <class Kind, int ROW_TILES, int COLUMN_TILES> struct Product {
    using S = typename Kind::S;
    static constexpr int DEPTH = TILE_BYTES / sizeof(S);
    static constexpr int ROWS = ROW_TILES * TILE_ROWS, COLUMNS = COLUMN_TILES * TILE_COLUMNS;
    static constexpr int HELD = Kind::registers / 8 / ROW_TILES;
    // Of a column of one warp's sums in shared memory: apart by 4 banks more than a whole number of
    // 16, so that the lanes of a fragment meet in no bank.
    static constexpr int PITCH = ROWS + 4;
    static constexpr int SUMS = WARPS * COLUMNS * PITCH;
    static_assert(HELD > 0, "");

    Fragment held[HELD][ROW_TILES];
    uint4* rest;  // of this warp
    int tiles;    // of this warp: warp(), warp() + WARPS, ...

    // How many tiles of an inner dimension each warp has, at most.
    HOST_DEVICE static int64_t most_tiles(int64_t depth) {
        return (depth + WARPS * DEPTH - 1) / (WARPS * DEPTH);
    }

    // Of the shared memory of a block, the bytes that weights take to stay, and to come.
    HOST_DEVICE static int64_t shared_bytes(int64_t depth) {
        const int64_t tiles = most_tiles(depth) - HELD;
        return tiles > 0 ? tiles * WARPS * ROW_TILES * 32 * int64_t(sizeof(Fragment)) : 0;
    }
    static constexpr int64_t STAGE_BYTES = HELD * WARPS * ROW_TILES * 32 * sizeof(Fragment);

    // weight(row, k), zero where there is none. `stage` may overlap with `shared`. What registers
    // hold goes through it: a loop over registers is unrolled, and all loads of all weights on their
    // way at once would leave no registers.
    template <class Weight>
    DEVICE void load(void* stage, void* shared, int64_t depth, const Weight& weight) {
        tiles = int(most_tiles(depth));
        uint4* const own = static_cast<uint4*>(stage) + HELD * warp() * ROW_TILES * 2 * 32;
        load_to(own, 0, HELD, weight);
        synchronise_warp();
#pragma unroll
        for (int k = 0; k < HELD; ++k) take(own + k * ROW_TILES * 2 * 32, held[k]);
        synchronise();
        rest = static_cast<uint4*>(shared)
               + int64_t(tiles > HELD ? tiles - HELD : 0) * warp() * ROW_TILES * 2 * 32;
        load_to(rest, HELD, tiles, weight);
    }

    template <class Weight>
    DEVICE void load_to(uint4* to, int first, int last, const Weight& weight) const {
#pragma unroll 1
        for (int k = first; k < last; ++k)
#pragma unroll 1
            for (int m = 0; m < ROW_TILES; ++m) {
                const Fragment found = fragment(k, m, weight);
                uint4* const place = to + ((k - first) * ROW_TILES + m) * 2 * 32 + lane();
                memcpy(place, found.upper, 16);
                memcpy(place + 32, found.lower, 16);
            }
    }

    DEVICE static void take(const uint4* from, Fragment (&w)[ROW_TILES]) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
            memcpy(w[m].upper, from + m * 2 * 32 + lane(), 16);
            memcpy(w[m].lower, from + m * 2 * 32 + lane() + 32, 16);
        }
    }

    template <class Weight> DEVICE Fragment fragment(int k, int m, const Weight& weight) const {
        constexpr int count = 16 / sizeof(S);
        S upper[count], lower[count];
        const int row = m * TILE_ROWS + lane() / 4;
        const int64_t first = int64_t(k * WARPS + warp()) * DEPTH + lane() % 4 * count;
#pragma unroll
        for (int j = 0; j < count; ++j) {
            upper[j] = operand<Kind>(weight(row, first + j));
            lower[j] = operand<Kind>(weight(row + 8, first + j));
        }
        Fragment found;
        memcpy(found.upper, upper, 16);
        memcpy(found.lower, lower, 16);
        return found;
    }

    // This warp's sums for COLUMNS rows of q, `stride` bytes apart, to `sums`. Of q as many values
    // exist as there are tiles.
    DEVICE void operator()(const char* q, int64_t stride, float* sums) const {
        float total[ROW_TILES][COLUMN_TILES][Kind::sums] = {};
        constexpr int batch = HELD % Kind::batch == 0 ? Kind::batch : 1;
#pragma unroll
        for (int k = 0; k < HELD; k += batch)
            if (k < tiles) {
                typename Kind::Operand v[batch][COLUMN_TILES];
#pragma unroll
                for (int i = 0; i < batch; ++i) operands(q, stride, min(k + i, tiles - 1), v[i]);
#pragma unroll
                for (int i = 0; i < batch; ++i) add(held[k + i], v[i], total);
            }
        for (int k = HELD; k < tiles; ++k) {
            typename Kind::Operand v[COLUMN_TILES];
            operands(q, stride, k, v);
            Fragment w[ROW_TILES];
            take(rest + (k - HELD) * ROW_TILES * 2 * 32, w);
            add(w, v, total);
        }
        put(total, sums + warp() * COLUMNS * PITCH);
    }

    DEVICE static int min(int a, int b) { return a < b ? a : b; }

    DEVICE static void operands(const char* q, int64_t stride, int k,
                                typename Kind::Operand (&v)[COLUMN_TILES]) {
        const char* const tile = q + int64_t(k * WARPS + warp()) * TILE_BYTES;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
            v[n] = Kind::load(tile + n * TILE_COLUMNS * stride, stride);
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
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n) {
                float found[4];
                Kind::finish(total[m][n], found);
                float* const place = sums + (n * TILE_COLUMNS + lane() % 4 * 2) * PITCH
                                     + m * TILE_ROWS + lane() / 4;
                place[0] = found[0];
                place[PITCH] = found[1];
                place[8] = found[2];
                place[PITCH + 8] = found[3];
            }
    }

    // What all warps together found, once they have met.
    DEVICE static float sum(const float* sums, int row, int column) {
        float total = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) total += sums[(w * COLUMNS + column) * PITCH + row];
        return total;
    }
};

}  // namespace rnnkit
