// The weights of a block that has all units of a group, and one row of the batch at a time.
//
// Neighbouring lanes share some rows of weights, of as many gates as the product serves: each has
// every SHARES-th piece of all of them, so that a piece of what is handed over, which it loads once,
// serves them all. Then the lanes add up what they found.
#pragma once
#include "weights.h"

namespace rnnkit {

template <class Kind, class C, int UNIT_TILES, bool BACKWARD, int FIRST, int COUNT>
struct RowWeights : GateWeights<C, BACKWARD, FIRST, COUNT> {
    using Base = GateWeights<C, BACKWARD, FIRST, COUNT>;
    static_assert(std::is_same_v<typename Kind::S, float> && !Kind::rounds, "full precision");
    static constexpr int ROW_GATES = Base::ROW_GATES, COLUMNS = 1;
    static constexpr int UNITS = UNIT_TILES * TILE_ROWS;
    static constexpr int SHARES = ROW_GATES > 2 ? 4 : 16 / ROW_GATES;  // lanes
    static constexpr int EACH = UNITS * SHARES / THREADS;              // units of a thread
    static constexpr int ROWS = EACH * ROW_GATES;                      // of each in turn
    static_assert(UNITS * SHARES % THREADS == 0 && EACH > 0);
    static constexpr int SUMS = UNITS * ROW_GATES;

    // Of a thread's part of a row: pieces of 16 bytes. The first HELD are in registers, of which a
    // product has as large a share as of the gates, the others in shared memory. There neighbouring
    // threads' pieces are neighbours.
    static constexpr int PIECE = 4;
    HOST_DEVICE static constexpr int pieces(int64_t H) {
        return int((Base::depth(H) + SHARES * PIECE - 1) / (SHARES * PIECE));
    }
    static constexpr int MOST = pieces(UNITS);
    static constexpr int REGISTERS = 160 * COUNT / C::gates / ROWS / PIECE;
    static constexpr int HELD = MOST < REGISTERS ? MOST : REGISTERS;
    static_assert(HELD > 0);
    static constexpr int64_t ALL_BYTES = ROWS * THREADS * sizeof(float4);  // of a piece of all rows
    using Parts = rnnkit::Parts<HELD, ALL_BYTES>;

    float4 held[HELD][ROWS];
    float4* rest;
    int count;  // pieces of a row

    // All pieces that there may be, since they are loaded before it is known whether there are.
    HOST_DEVICE static int64_t bytes(int64_t) { return SHARES * MOST * int64_t(sizeof(float4)); }
    HOST_DEVICE static int64_t shared_bytes(int64_t H) {
        return pieces(H) > HELD ? (pieces(H) - HELD) * ALL_BYTES : 0;
    }

    DEVICE static int share() { return thread() % SHARES; }

    // Each thread loads its own weights, in the order in which it takes them; several at once,
    // since each load waits for the memory.
    DEVICE static void load_to(float4* own, int first, int last, const Arguments& a, int n) {
#pragma unroll 4
        for (int i = 0; i < (last - first) * ROWS; ++i) {
            const int k = first + i / ROWS, row = i % ROWS;
            const int unit = thread() / SHARES * EACH + row / ROW_GATES;
            float v[PIECE];
            Base::load(a, n, row % ROW_GATES, unit, (k * SHARES + share()) * PIECE, v);
            own[i * THREADS] = {v[0], v[1], v[2], v[3]};
        }
    }

    DEVICE void bring(int part, const Arguments& a, int n, int, void* to) {
        count = pieces(a.H);
        rest = static_cast<float4*>(to) + thread();
        load_to(rest, Parts::first(part), Parts::last(part, count), a, n);
#pragma unroll
        for (int k = 0; k < HELD; ++k)
            if (Parts::of(k) == part)
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
                    held[k][r] = rest[(k % Parts::EACH * ROWS + r) * THREADS];
    }

    DEVICE static void add(float& sum, const float4& w, const float4& v) {
        sum += w.x * v.x;
        sum += w.y * v.y;
        sum += w.z * v.z;
        sum += w.w * v.w;
    }

    template <class Exchange> DEVICE void multiply(const char* q, int64_t, float* sums) const {
        const auto piece = [&](int k) {
            const char* const from = q + (k * SHARES + share()) * int(sizeof(float4));
            const uint4 words = Exchange::load(reinterpret_cast<const uint4*>(from));
            float4 v;
            memcpy(&v, &words, sizeof v);
            return v;
        };
        float total[ALL] = {};
        float4 v[HELD];
#pragma unroll
        for (int k = 0; k < HELD; ++k) v[k] = piece(k);
#pragma unroll
        for (int k = 0; k < HELD; ++k)
            if (k < count)
#pragma unroll
                for (int r = 0; r < ROWS; ++r) add(total[r], held[k][r], v[k]);
        if constexpr (MOST > HELD) {
#pragma unroll 1
            for (int k = HELD; k < count; ++k) {
                const float4 v = piece(k);
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
                    add(total[r], rest[((k - HELD) * ROWS + r) * THREADS], v);
            }
        }
        add_up<1>(total, 0, sums + thread() / SHARES * ROWS);
    }

    // A thread's rows, with such as there are not, up to a power of two: with every bit of its number
    // a lane keeps half of them, until it has ONE part.
    static constexpr int ALL = ROWS > 4 ? 8 : ROWS > 2 ? 4 : ROWS;
    static_assert(ROWS <= ALL);
    static constexpr int ONE = ALL > SHARES ? ALL / SHARES : 1;

    template <int BIT, int SIZE>
    DEVICE static void add_up(const float (&v)[SIZE], int first, float* sums) {
        if constexpr (BIT == SHARES) {
            Gates<ONE> found;
            for (int i = 0; i < ONE; ++i) found.of[i] = v[i];
            if (first < ROWS && share() < ALL / ONE)
                *reinterpret_cast<Gates<ONE>*>(sums + first) = found;
        } else if constexpr (SIZE == 1) {
            const float both[1] = {v[0] + shuffle_xor(v[0], BIT)};
            add_up<2 * BIT>(both, first, sums);
        } else {
            float half[SIZE / 2];
            halve(v, BIT, half);
            add_up<2 * BIT>(half, first + (lane() & BIT ? SIZE / 2 : 0), sums);
        }
    }

    DEVICE void clear(float*) const {}
    template <bool CLEARED>
    DEVICE void sum(const float* sums, int unit, int, float (&total)[ROW_GATES]) const {
        const auto found = reinterpret_cast<const Gates<ROW_GATES>*>(sums)[unit];
#pragma unroll
        for (int g = 0; g < ROW_GATES; ++g) total[g] = found.of[g];
    }
};

}  // namespace rnnkit
