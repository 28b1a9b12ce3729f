// The weights of a block that has all units of a group, and one row of the batch at a time.
//
// PARTS threads share a unit: of its gates forward; of the inner dimension where gates are fewer,
// and backward. Each multiplies whole rows of weights, or a part of each, by what is handed over,
// which all lanes of a warp read at one place: there is no other traffic but a sum of each.
#pragma once
#include "weights.h"

namespace rnnkit {

template <class Kind, class C, int UNIT_TILES, bool BACKWARD, int FIRST, int COUNT>
struct RowWeights : GateWeights<C, BACKWARD, FIRST, COUNT> {
    using Base = GateWeights<C, BACKWARD, FIRST, COUNT>;
    static_assert(std::is_same_v<typename Kind::S, float> && !Kind::rounds, "full precision");
    static constexpr int ROW_GATES = Base::ROW_GATES, COLUMNS = 1;
    static constexpr int PARTS = 4, LANES = THREADS / PARTS, UNITS = UNIT_TILES * TILE_ROWS;
    static constexpr int ROWS = UNITS / LANES;        // of a thread
    static constexpr int SHARES = PARTS / ROW_GATES;  // parts of the inner dimension
    static_assert(UNITS % LANES == 0 && SHARES > 0);
    static constexpr int SUMS = PARTS * UNITS;

    // Of a thread's part of a row: pieces of 16 bytes, GROUP of them loaded together. The first
    // HELD are in registers, of which a product has as large a share as of the gates, the others in
    // shared memory. There neighbouring threads' pieces are neighbours.
    static constexpr int PIECE = 4, GROUP = 4;
    HOST_DEVICE static constexpr int64_t pieces(int64_t H) {
        constexpr int all = SHARES * PIECE * GROUP;
        return (Base::depth(H) + all - 1) / all * GROUP;
    }
    static constexpr int MOST = int(pieces(UNITS));
    static constexpr int REGISTERS = 160 * COUNT / C::gates / ROWS / PIECE / GROUP * GROUP;
    static constexpr int HELD = MOST < REGISTERS ? MOST : REGISTERS;
    static constexpr int64_t PIECE_BYTES = THREADS * sizeof(float4);
    static constexpr int64_t STAGE_BYTES = HELD * ROWS * PIECE_BYTES;

    float4 held[HELD][ROWS];
    float4* rest;
    int count;  // pieces of a row

    HOST_DEVICE static int64_t bytes(int64_t H) {
        return SHARES * pieces(H) * int64_t(sizeof(float4));
    }
    HOST_DEVICE static int64_t shared_bytes(int64_t H) {
        return pieces(H) > HELD ? (pieces(H) - HELD) * ROWS * PIECE_BYTES : 0;
    }

    DEVICE static int part() { return thread() / LANES; }

    // Each thread loads its own weights, in the order in which it takes them; several at once,
    // since each load waits for the memory.
    DEVICE static void load_to(float4* own, int first, int last, const Arguments& a, int n) {
        const int g = part() / SHARES, from = part() % SHARES * int(pieces(a.H));
        const int exist = g < ROW_GATES ? int(pieces(a.H)) : 0;
#pragma unroll 4
        for (int i = 0; i < (last - first) * ROWS; ++i) {
            const int k = first + i / ROWS, unit = thread() % LANES + i % ROWS * LANES;
            float v[PIECE];
            Base::load(a, n, g, k < exist ? unit : a.H, (from + k) * PIECE, v);
            own[i * THREADS] = {v[0], v[1], v[2], v[3]};
        }
    }

    DEVICE void bring(bool stay, const Arguments& a, int n, int, void* to) {
        count = int(pieces(a.H));
        rest = static_cast<float4*>(to) + thread();
        load_to(rest, stay ? HELD : 0, stay ? count : HELD, a, n);
        if (stay) return;
#pragma unroll
        for (int k = 0; k < HELD; ++k)
#pragma unroll
            for (int r = 0; r < ROWS; ++r) held[k][r] = rest[(k * ROWS + r) * THREADS];
    }

    template <class Exchange> DEVICE static void load(const char* from, float4 (&v)[GROUP]) {
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            const uint4 words = Exchange::load(reinterpret_cast<const uint4*>(from) + i);
            memcpy(&v[i], &words, sizeof words);
        }
    }

    DEVICE static void add(float4& sum, const float4& w, const float4& v) {
        sum.x += w.x * v.x;
        sum.y += w.y * v.y;
        sum.z += w.z * v.z;
        sum.w += w.w * v.w;
    }

    template <class Exchange> DEVICE void multiply(const char* q, int64_t, float* sums) const {
        if (part() / SHARES >= ROW_GATES) return;
        const char* const own = q + part() % SHARES * count * int(sizeof(float4));
        float4 total[ROWS] = {};
#pragma unroll
        for (int k = 0; k < HELD; k += GROUP)
            if (k < count) {
                float4 v[GROUP];
                load<Exchange>(own + k * sizeof(float4), v);
#pragma unroll
                for (int i = 0; i < GROUP; ++i)
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) add(total[r], held[k + i][r], v[i]);
            }
        if constexpr (MOST > HELD) {
#pragma unroll 1
            for (int k = HELD; k < count; k += GROUP) {
                float4 v[GROUP];
                load<Exchange>(own + k * sizeof(float4), v);
#pragma unroll
                for (int i = 0; i < GROUP; ++i)
#pragma unroll
                    for (int r = 0; r < ROWS; ++r)
                        add(total[r], rest[((k - HELD + i) * ROWS + r) * THREADS], v[i]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            sums[part() * UNITS + r * LANES + thread() % LANES]
                = (total[r].x + total[r].y) + (total[r].z + total[r].w);
    }

    DEVICE void clear(float*) const {}
    template <bool CLEARED>
    DEVICE void sum(const float* sums, int unit, int, float (&total)[ROW_GATES]) const {
#pragma unroll
        for (int g = 0; g < ROW_GATES; ++g) {
            total[g] = 0;
#pragma unroll
            for (int i = 0; i < SHARES; ++i) total[g] += sums[(g * SHARES + i) * UNITS + unit];
        }
    }
};

}  // namespace rnnkit
