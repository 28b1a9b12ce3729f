// Layer normalisation (Ba et al. 2016, equation 3) of rows of which every block has some units.
//
// For a norm and for its gradient a row needs two sums over all units. Each block hands over those
// of its own units, and then reads every block's: in a fixed order, so that a result depends on
// nothing else. Of what is normalised these are the mean and the squared distances from it, which
// are put together by the formula of Chan et al. (1983), and no large mean hides a small spread.
//
// A row's units in a block are UNITS neighbouring lanes of a warp.
#pragma once
#include <cstring>
#include "math.h"

namespace rnnkit {

// What is the same for all rows. A launch computes it, since what a kernel computes before its loop
// takes registers.
struct Rows {
    int full, pairs;         // blocks whose units all exist; pairs of blocks
    float last, share, eps;  // units of the block after those; 1 / H
};

// What blocks hand over of one row: of SUMS sums, two numbers each. They lie in words of 16 bytes,
// each of two blocks, by pairs of blocks, so that the compiler knows how far apart sums are.
template <class Exchange, int UNITS, int SUMS> struct Partials {
    Exchange& exchange;
    const Rows& rows;
    uint4* words;
    int chunk, unit;  // unit: of the lane, in the block

    HOST_DEVICE static int64_t pairs(int64_t H) { return (H - 1) / (2 * UNITS) + 1; }
    HOST_DEVICE static int64_t bytes(int64_t H) { return pairs(H) * SUMS * sizeof(uint4); }

    DEVICE void put(int sum, float first, float second) const {
        uint4* const word = words + block_x() / 2 * SUMS + sum;
        float2* const place = reinterpret_cast<float2*>(word) + block_x() % 2;
        exchange.template share<UNITS>(chunk, place, float2{first, second}, unit);
    }

    // Of blocks 2 * pair and 2 * pair + 1; past the last one zero.
    DEVICE void get(int sum, int pair, float (&found)[4]) const {
        const uint4 word = Exchange::load(words + pair * SUMS + sum);
        memcpy(found, &word, sizeof word);
    }

    // How many units a block has.
    DEVICE float count(int block) const {
        return block < rows.full ? UNITS : block == rows.full ? rows.last : 0;
    }
};

// The mean of some values, and the sum of the squares of their distances from it.
struct Moments {
    float count, mean, squares;

    // The same of more values.
    DEVICE void add(float more, const float* moments) {
        if (more == 0) return;
        const float all = count + more, share = more / all, apart = moments[0] - mean;
        mean += apart * share;
        squares += moments[1] + apart * apart * count * share;
        count = all;
    }
};

// Of GROUPS groups of values, each normalised by itself, a lane has EACH, of its unit. A round lies
// between hand_over() and what is declared after it.
template <class Partials, int UNITS, int GROUPS, int EACH> struct Norm {
    static constexpr int VALUES = GROUPS * EACH;
    using Values = float (&)[VALUES];
    using Given = const float (&)[VALUES];
    using Sums = float (&)[GROUPS];

    Partials partials;
    int first;  // of the sums

    DEVICE void hand_over(Given v) const {
        float mean[GROUPS], squares[GROUPS], squared[VALUES];
        total(v, mean);
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) mean[g] /= partials.count(block_x()) * EACH;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            const float apart = v[i] - mean[i / EACH];
            squared[i] = apart * apart;
        }
        total(squared, squares);
        put(mean, squares);
    }

    // n and the scale with which it was multiplied, n in place of v.
    DEVICE void normalise(Values v, Values scale) const {
        Moments own[GROUPS] = {};
#pragma unroll 1
        for (int k = partials.unit; k < partials.rows.pairs; k += UNITS) {
            float word[GROUPS][4];
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) partials.get(first + g, k, word[g]);
#pragma unroll
            for (int g = 0; g < GROUPS; ++g)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    own[g].add(partials.count(2 * k + i) * EACH, word[g] + 2 * i);
        }
        float mean[GROUPS], squares[GROUPS];
        const float share = partials.rows.share / EACH;
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) mean[g] = own[g].mean * own[g].count * share;
        sum(mean);
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            const float apart = own[g].mean - mean[g];
            squares[g] = own[g].squares + own[g].count * apart * apart;
        }
        sum(squares);
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            scale[i] = inverse_root(squares[i / EACH] * share + partials.rows.eps);
            v[i] = (v[i] - mean[i / EACH]) * scale[i];
        }
    }

    // The same for the gradient dn of n.
    DEVICE void hand_over(Given dn, Given n) const {
        float mean[GROUPS], along[GROUPS], product[VALUES];
        total(dn, mean);
#pragma unroll
        for (int i = 0; i < VALUES; ++i) product[i] = dn[i] * n[i];
        total(product, along);
        put(mean, along);
    }

    // The gradient of v, in place of dn.
    DEVICE void gradient(Values dn, Given n, Given scale) const {
        float mean[GROUPS] = {}, along[GROUPS] = {};
#pragma unroll 1
        for (int k = partials.unit; k < partials.rows.pairs; k += UNITS)
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                float word[4];
                partials.get(first + g, k, word);
                mean[g] += word[0] + word[2];
                along[g] += word[1] + word[3];
            }
        sum(mean);
        sum(along);
        const float share = partials.rows.share / EACH;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            const int g = i / EACH;
            dn[i] = scale[i] * (dn[i] - mean[g] * share - n[i] * (along[g] * share));
        }
    }

    // Over the lanes of a row.
    DEVICE static void sum(Sums v) {
#pragma unroll
        for (int mask = UNITS / 2; mask > 0; mask /= 2)
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) v[g] += shuffle_xor(v[g], mask);
    }

    // The block's sum of each group.
    DEVICE void total(Given v, Sums found) const {
        const bool exists = partials.unit < partials.count(block_x());
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            found[g] = 0;
#pragma unroll
            for (int i = 0; i < EACH; ++i) found[g] += exists ? v[g * EACH + i] : 0;
        }
        sum(found);
    }

    DEVICE void put(Sums a, Sums b) const {
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) partials.put(first + g, a[g], b[g]);
    }
};

}  // namespace rnnkit
