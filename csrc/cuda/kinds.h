// The kinds of product: how a warp multiplies a tile of weights with a tile of the batch.
//
// The inner dimension may be in any order, if it is the same for both factors. Here each lane takes
// 16 consecutive bytes of a row where the fragments of mma<S> have four words far apart: so what is
// handed over lies in its natural order and goes straight from L2 to registers.
#pragma once
#include <cstring>
#include "math.h"

namespace rnnkit {

constexpr int TILE_BYTES = 64;    // of a row: what a warp multiplies at once
constexpr int TILE_ROWS = 16;     // of weights
constexpr int TILE_COLUMNS = 8;   // rows of the batch

// A lane's part of a tile of weights: 16 bytes of row lane() / 4, and of the one 8 below, in an order
// that is the kind's.
struct Fragment {
    uint32_t halves[2][4];
};

// Products by the matrix units, summed in float. float itself is rounded to TF32 by who makes the
// operands.
template <class T> struct MatrixUnits {
    using S = T;
    static constexpr bool rounds = sizeof(S) == 4;
    static constexpr int sums = 4;
    static constexpr int registers = 128;  // of a thread, for weights
    static constexpr int batch = 2;        // tiles of q that are loaded together
    static constexpr bool skips = true;    // whether a warp without tiles multiplies nothing

    struct Operand {
        uint4 words;
    };

    // Of the row that this lane feeds; `rows` is the tile's first, they are `stride` bytes apart.
    template <class Exchange> DEVICE static Operand load(const char* rows, int64_t stride) {
        return {Exchange::load(reinterpret_cast<const uint4*>(rows + lane() / 4 * stride
                                                              + lane() % 4 * 16))};
    }

    // Of the k-th word of a fragment's row: mma<S> takes half of both rows, from registers in a row.
    DEVICE static constexpr int place(bool lower, int k) { return k / 2 * 4 + k % 2 * 2 + lower; }

    DEVICE static void multiply(float (&sum)[sums], const Fragment& w, const Operand& v) {
        const uint32_t low[2] = {v.words.x, v.words.y}, high[2] = {v.words.z, v.words.w};
        mma<S>(sum, w.halves[0], low);
        mma<S>(sum, w.halves[1], high);
    }

    DEVICE static void finish(const float (&sum)[sums], float (&found)[4]) {
        for (int k = 0; k < 4; ++k) found[k] = sum[k];
    }
};

// What two lanes, one's number the other's ^ bit, found together of several values: the lane without
// the bit keeps the first half of them, the other one the second.
template <int SIZE> DEVICE void halve(const float (&v)[2 * SIZE], int bit, float (&half)[SIZE]) {
    const bool upper = lane() & bit;
#pragma unroll
    for (int i = 0; i < SIZE; ++i)
        half[i] = (upper ? v[SIZE + i] : v[i]) + shuffle_xor(upper ? v[i] : v[SIZE + i], bit);
}

// Products in full single precision, by the same lanes as those of the matrix units. A lane sums
// over its own part of the inner dimension for all columns of a tile; `finish` adds up four lanes'.
struct FullPrecision {
    using S = float;
    static constexpr bool rounds = false;
    static constexpr int sums = 2 * TILE_COLUMNS;
    static constexpr int registers = 64, batch = 1;
    static constexpr bool skips = false;  // for the branch no register is left

    struct Operand {
        uint4 words[TILE_COLUMNS];
    };

    template <class Exchange> DEVICE static Operand load(const char* rows, int64_t stride) {
        Operand found;
#pragma unroll
        for (int n = 0; n < TILE_COLUMNS; ++n)
            found.words[n] = Exchange::load(
                reinterpret_cast<const uint4*>(rows + n * stride + lane() % 4 * 16));
        return found;
    }

    // One row after the other, of which few words are needed at once.
    DEVICE static constexpr int place(bool lower, int k) { return lower * 4 + k; }

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
                sum[n] += real(w.halves[0][k]) * q[k];
                sum[TILE_COLUMNS + n] += real(w.halves[1][k]) * q[k];
            }
        }
    }

    // Of both rows, columns 2j and 2j + 1 for the lane j of four.
    DEVICE static void finish(const float (&sum)[sums], float (&found)[4]) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float all[TILE_COLUMNS], half[4], own[2];
#pragma unroll
            for (int n = 0; n < TILE_COLUMNS; ++n) all[n] = sum[row * TILE_COLUMNS + n];
            halve(all, 2, half);
            halve(half, 1, own);
            found[2 * row] = own[0];
            found[2 * row + 1] = own[1];
        }
    }
};

// A value as an operand.
template <class Kind> DEVICE typename Kind::S operand(float v) {
    if constexpr (Kind::rounds) return round_tf32(v);
    else return narrow<typename Kind::S>(v);
}

}  // namespace rnnkit
