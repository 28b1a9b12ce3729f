// The stepwise scan's launches, backward: step(k) takes the k-th step from the last, and makes of
// what product k gave the gradients that product k + 1 is fed. With an inner step, those are the
// late gates', and inner(k) makes of that product's gradient the early gates'.
#pragma once
#include "row_norm.h"

namespace rnnkit {

template <class S, class C> struct RowBackward {
    using Row = rnnkit::Row<S, C>;
    using V = typename Row::V;
    using Unit = typename Row::Unit;
    using Behind = typename Unit::Behind;
    using Own = typename Row::Own;
    using Last = typename Row::Last;
    // Among what is kept: the value that the step normalises, and, until gates need its place, the
    // gradient of what that is normalised to.
    static constexpr int VALUE = C::gates, GRADIENT = 0;

    const Row row;

    // Of the k-th step from the last.
    DEVICE int time(int k) const { return row.clock.time(int(row.a.T) - 1 - k); }

    DEVICE void step(int k) const {
        Within norm = {};
        if (k < row.a.T) through_norm_within(k, norm);
        row.each_unit([&](const Unit& u) {
            V ds[C::states];
            collect(k, u, ds);
            if (k == row.a.T)
                for (int i = 0; i < C::states; ++i) u.put(row.a.ds0, u.state(i), ds[i]);
            else
                through_step(k, u, norm, ds);
        });
        if (k < row.a.T) through_norm<Last>(time(k));
    }

    DEVICE void inner(int k) const {
        const int t = time(k - 1);
        row.each_unit([&](const Unit& u) {
            Own own;
            V ds[C::states], dr[C::gates] = {};
            row.load_own(u, own);
            for (int i = 0; i < C::states; ++i) ds[i] = row.state(u, i);
            for (int g = 0; g < C::late; ++g) dr[g] = row.kept(u, g);
            const V dq = u.dropped(row.product(u.state(0)));
            u.store(t, u.inner_vjp(t, u.behind(t), own, 1, dq, ds, dr));
            leave<typename Row::Early>(u, own, ds, dr);
        });
        through_norm<typename Row::Early>(t);
    }

    // ds of the states that enter the step after the k-th from the last, with the products' part.
    DEVICE void collect(int k, const Unit& u, V (&ds)[C::states]) const {
        for (int i = 0; i < C::states; ++i) ds[i] = k == 0 ? u.final(i) : row.state(u, i);
        if (k > 0 && !row.clock.flags(time(k - 1), u.at.b).fresh())
            ds[0] += u.dropped(row.product(u.state(0)));
    }

    // This row's part of the gradient of a parameter, of dp (B, N, P, H).
    DEVICE V* dp(const Unit& u, int k) const {
        return static_cast<V*>(row.a.dp) + row.index(u, k, C::rows);
    }

    // Of a row's norm within the step.
    struct Within {
        V mean[1], scale[1], slope[1], along[1];
    };

    // What the norm within the step makes of a unit's value.
    DEVICE V normalised(const Unit& u, const Within& norm) const {
        return (row.kept(u, VALUE) - norm.mean[0]) * norm.scale[0];
    }

    DEVICE typename Unit::Within within(const Unit& u, const Within& norm) const {
        const V n = normalised(u, norm), dn = row.kept(u, GRADIENT);
        const V dv = norm.scale[0] * (dn - norm.slope[0] - n * norm.along[0]);
        return {row.kept(u, VALUE), n, dv};
    }

    DEVICE void through_step(int k, const Unit& u, const Within& norm, V (&ds)[C::states]) const {
        Own own;
        V dr[C::gates];
        const int t = time(k);
        row.load_own(u, own);
        for (int i = 0; k == 0 && i < C::rows; ++i) *dp(u, i) = 0;
        typename Unit::Within found = {};
        if constexpr (C::normalises) found = within(u, norm);
        u.store(t, u.vjp(t, u.behind(t), own, 1, ds, dr, dp(u, 0), row.a.H, found));
        for (int g = 0; g < Last::FIRST; ++g) row.kept(u, g) = dr[g];
        leave<Last>(u, own, ds, dr);
    }

    // What others of the row, the next product or the next launch need.
    template <class P>
    DEVICE void leave(const Unit& u, const Own& own, const V (&ds)[C::states],
                      const V (&dr)[C::gates]) const {
        for (int i = 0; i < C::states; ++i) row.state(u, i) = ds[i];
        for (int g = P::FIRST; g < P::FIRST + P::COUNT; ++g)
            if constexpr (NORM<C>) row.kept(u, g) = dr[g] * u.gain(own, 1, g);
            else u.put(row.steps.fed, row.index(u, g), dr[g]);
    }

    // From the gradient of what products are normalised to, to what is fed.
    template <class P> DEVICE void through_norm(int t) const {
        if constexpr (NORM<C>) {
            const auto gradient = [&](const Unit& u, V (&dn)[P::COUNT], V (&n)[P::COUNT]) {
                const Behind v = u.behind(t);
                for (int g = 0; g < P::COUNT; ++g) {
                    dn[g] = row.kept(u, P::FIRST + g);
                    n[g] = v.r[P::FIRST + g];
                }
            };
            V mean[P::COUNT], along[P::COUNT];
            RowNorm<Row, P::COUNT>{row}.slopes(gradient, mean, along);
            row.each_unit([&](const Unit& u) {
                V dn[P::COUNT], n[P::COUNT];
                gradient(u, dn, n);
                const bool live = t < row.clock.length(u.at.b);
                for (int g = 0; g < P::COUNT; ++g) {
                    const V scale = live ? u.scale(t, P::FIRST + g) : 0;
                    u.put(row.steps.fed, row.index(u, P::FIRST + g),
                          scale * (dn[g] - mean[g] - n[g] * along[g]));
                }
            });
        }
    }

    // The norm within a step again, and what its gradient needs of the whole row.
    DEVICE void through_norm_within(int k, Within& norm) const {
        if constexpr (C::normalises) {
            const RowNorm<Row, 1> whole = {row};
            row.each_unit([&](const Unit& u) { row.kept(u, VALUE) = value(time(k), u); });
            const auto values = [&](const Unit& u, V (&v)[1]) { v[0] = row.kept(u, VALUE); };
            whole.moments(values, norm.mean, norm.scale);
            row.each_unit([&](const Unit& u) { row.kept(u, GRADIENT) = gradient(k, u, norm); });
            const auto gradients = [&](const Unit& u, V (&dn)[1], V (&n)[1]) {
                dn[0] = row.kept(u, GRADIENT);
                n[0] = normalised(u, norm);
            };
            whole.slopes(gradients, norm.slope, norm.along);
        }
    }

    // What the step normalises.
    DEVICE V value(int t, const Unit& u) const {
        const Behind v = u.behind(t);
        V r[C::gates], p[C::rows + 1];
        saw(u, v, r, p);
        return C::normalised(v.x, r, v.s, p);
    }

    // That of what it normalises it to.
    DEVICE V gradient(int k, const Unit& u, const Within& norm) const {
        const Behind v = u.behind(time(k));
        V r[C::gates], p[C::rows + 1], ds[C::states], next[C::states], past[C::states];
        saw(u, v, r, p);
        collect(k, u, ds);
        u.reached(time(k), v, ds, next, past);
        return C::normalised_gradient(v.x, r, v.s, p, row.kept(u, VALUE), normalised(u, norm),
                                      next);
    }

    DEVICE void saw(const Unit& u, const Behind& v, V (&r)[C::gates],
                    V (&p)[C::rows + 1]) const {
        Own own;
        row.load_own(u, own);
        u.saw(v, own, 1, r, p);
    }
};

}  // namespace rnnkit
