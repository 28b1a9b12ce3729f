// Layer normalisation (Ba et al. 2016, equation 3) of a row that a block has whole, of any length:
// what the threads find of their units is added up through shared memory, in an order that only
// the row's length decides.
//
// f(u, v) gives the COUNT values of unit u: the same in every walk over the row.
#pragma once
#include "row.h"

namespace rnnkit {

template <class R, int COUNT> struct RowNorm {
    using V = typename R::V;
    using Unit = typename R::Unit;
    using Values = V (&)[COUNT];

    const R& row;

    HOST_DEVICE static int shared_bytes(int threads) { return threads / 32 * COUNT * sizeof(V); }

    // Of what is normalised to n = (v - mean) * scale, by two walks, so that no large mean hides a
    // small spread.
    template <class F> DEVICE void moments(const F& f, Values mean, Values scale) const {
        average(f, mean);
        const auto squared = [&](const Unit& u, Values v) {
            f(u, v);
            for (int i = 0; i < COUNT; ++i) v[i] = (v[i] - mean[i]) * (v[i] - mean[i]);
        };
        average(squared, scale);
        for (int i = 0; i < COUNT; ++i) scale[i] = inverse_root(scale[i] + V(row.a.eps));
    }

    // Of the gradient of n, which f(u, dn, n) gives with it: that of v is
    // scale * (dn - mean - n * along).
    template <class F> DEVICE void slopes(const F& f, Values mean, Values along) const {
        const auto gradient = [&](const Unit& u, Values v) {
            V n[COUNT];
            f(u, v, n);
        };
        const auto product = [&](const Unit& u, Values v) {
            V n[COUNT];
            f(u, v, n);
            for (int i = 0; i < COUNT; ++i) v[i] *= n[i];
        };
        average(gradient, mean);
        average(product, along);
    }

    // Over the row: of each value, or of all together.
    template <class F> DEVICE void average(const F& f, Values found) const {
        for (int i = 0; i < COUNT; ++i) found[i] = 0;
        row.each_unit([&](const Unit& u) {
            V v[COUNT];
            f(u, v);
            for (int i = 0; i < COUNT; ++i) found[i] += v[i];
        });
        add_up(found);
        constexpr int per_gate = 1;
        const bool apart = COUNT == 1 || row.a.norm == per_gate;
        V all = 0;
        for (int i = 0; i < COUNT; ++i) all += found[i];
        for (int i = 0; i < COUNT; ++i)
            found[i] = apart ? found[i] / row.a.H : all / (COUNT * row.a.H);
    }

    // Over the block, for every thread.
    DEVICE static void add_up(Values v) {
        V* const sums = shared_memory<V>();
        for (int i = 0; i < COUNT; ++i)
            for (int mask = 16; mask > 0; mask /= 2) v[i] += shuffle_xor(v[i], mask);
        synchronise();  // until all have read what was there before
        for (int i = 0; i < COUNT; ++i) {
            if (lane() == 0) sums[warp() * COUNT + i] = v[i];
            v[i] = 0;
        }
        synchronise();
        for (int k = 0; k < threads() / 32; ++k)
            for (int i = 0; i < COUNT; ++i) v[i] += sums[k * COUNT + i];
    }
};

}  // namespace rnnkit
