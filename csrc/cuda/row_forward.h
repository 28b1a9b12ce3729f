// The stepwise scan's launches, forward. Products are 1 to T of each kind, launches 0 to T: step(k)
// makes of product k the states that product k + 1 is fed. With an inner step, inner(k) makes of
// the early gates' product what the late gates' is fed.
#pragma once
#include "row_norm.h"

namespace rnnkit {

template <class S, class C> struct RowForward {
    using Row = rnnkit::Row<S, C>;
    using V = typename Row::V;
    using Unit = typename Row::Unit;
    using Ahead = typename Unit::Ahead;
    // Among what is kept: the value that the step normalises.
    static constexpr int VALUE = C::gates;

    const Row row;

    DEVICE void step(int k) const {
        const int t = row.clock.time(k - 1);
        V mean[1] = {}, scale[1] = {};
        if (k > 0) normalise<typename Row::Last>(t);
        if (k > 0) normalise_within(t, mean, scale);
        row.each_unit([&](const Unit& u) {
            V s[C::states];
            if (k == 0)
                for (int i = 0; i < C::states; ++i) s[i] = u.initial(i);
            else
                advance(t, u, mean[0], scale[0], s);
            if (k == row.a.T) return u.leave(s);
            for (int i = 0; i < C::states; ++i) row.state(u, i) = s[i];
            feed(u, s[0]);
        });
    }

    DEVICE void inner(int k) const {
        const int t = row.clock.time(k - 1);
        normalise<typename Row::Early>(t);
        row.each_unit([&](const Unit& u) {
            const Seen v = seen(t, u);
            feed(u, C::inner_step(v.ahead.x, v.r, v.s, v.p));
        });
    }

    DEVICE void feed(const Unit& u, V q) const {
        u.put(row.steps.fed, u.state(0), u.dropped(q));
    }

    // A gate's product; a zero state's is zero, whatever the weights.
    DEVICE V received(const Unit& u, const Ahead& v, int g) const {
        return v.flags.fresh() ? 0 : row.product(row.index(u, g));
    }

    // Puts what products are normalised to in their place.
    template <class P> DEVICE void normalise(int t) const {
        if constexpr (NORM<C>) {
            const auto values = [&](const Unit& u, V (&v)[P::COUNT]) {
                const Ahead ahead = u.ahead(t, NORMED<C> == Normed::SUMS);
                for (int g = 0; g < P::COUNT; ++g)
                    v[g] = received(u, ahead, P::FIRST + g) + ahead.x[P::FIRST + g];
            };
            V mean[P::COUNT], scale[P::COUNT];
            RowNorm<Row, P::COUNT>{row}.moments(values, mean, scale);
            row.each_unit([&](const Unit& u) {
                V v[P::COUNT];
                values(u, v);
                for (int g = 0; g < P::COUNT; ++g)
                    row.product(row.index(u, P::FIRST + g)) = (v[g] - mean[g]) * scale[g];
            });
        }
    }

    // The moments of what the step normalises.
    DEVICE void normalise_within(int t, V (&mean)[1], V (&scale)[1]) const {
        if constexpr (C::normalises) {
            row.each_unit([&](const Unit& u) {
                const Seen v = seen(t, u);
                row.kept(u, VALUE) = C::normalised(v.ahead.x, v.r, v.s, v.p);
            });
            const auto value = [&](const Unit& u, V (&v)[1]) { v[0] = row.kept(u, VALUE); };
            RowNorm<Row, 1>{row}.moments(value, mean, scale);
        }
    }

    // What a step sees of a unit: x, r, the states that have entered it, its parameters.
    struct Seen {
        Ahead ahead;
        V r[C::gates], s[C::states], p[C::rows + 1];
    };

    DEVICE Seen seen(int t, const Unit& u) const {
        Seen v = {u.ahead(t, NORMED<C> != Normed::SUMS), {}, {}, {}};
        typename Row::Own own;
        row.load_own(u, own);
        for (int g = 0; g < C::gates; ++g) {
            const V found = NORM<C> ? row.product(row.index(u, g)) : received(u, v.ahead, g);
            v.r[g] = u.seen(own, 1, g, found);
        }
        u.parameters(own, 1, v.p);
        for (int i = 0; i < C::states; ++i) v.s[i] = row.state(u, i);
        u.enter(v.ahead, v.s);
        return v;
    }

    DEVICE void advance(int t, const Unit& u, V mean, V scale, V (&s)[C::states]) const {
        Seen v = seen(t, u);
        const V value = C::normalises ? row.kept(u, VALUE) : 0;
        for (int i = 0; i < C::states; ++i) s[i] = v.s[i];
        u.store(t, u.advance(t, v.ahead, v.r, v.p, value, (value - mean) * scale, s));
    }
};

}  // namespace rnnkit
