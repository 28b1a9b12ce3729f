// One unit of one row at one step, forward and backward: what is loaded for it, and what is stored.
#pragma once
#include "math.h"
#include "normed.h"
#include "place.h"

namespace rnnkit {

// Of a unit's own values, `own` is the first: the biases of all gates, the parameters of the step
// and, with a norm, its gains, `pitch` apart.
template <class T, class C> struct Unit {
    using S = T;
    using V = Wide<S>;
    using Gates = V (&)[C::gates];
    using States = V (&)[C::states];
    using Parameters = V (&)[C::rows + 1];

    const Arguments& a;
    const Form& form;
    const Clock& clock;
    Place at;

    // Within a step, 32 bits number all values: 64 would take several instructions for each product.
    // Of a step that has so many values of each unit: how many they are; where the first one is, H
    // before the next.
    DEVICE int size(int count) const { return int(form.plane) * count; }
    DEVICE int64_t index(int t, int count) const {
        return uint64_t(unsigned(t)) * unsigned(size(count))
               + unsigned(row() * count * int(a.H) + at.j);
    }
    DEVICE S* place(const void* of, int t, int count) const {
        return settled(static_cast<S*>(const_cast<void*>(of)) + index(t, count));
    }
    DEVICE int row() const { return at.b * int(a.N) + at.n; }
    DEVICE int64_t state(int k) const { return index(k, 1); }

    static DEVICE V value(const void* from, int64_t index) {
        return wide(static_cast<const S*>(from)[index]);
    }
    static DEVICE void put(void* to, int64_t index, V v) {
        static_cast<S*>(to)[index] = narrow<S>(v);
    }

    static DEVICE void parameters(const V* own, int pitch, Parameters p) {
        for (int k = 0; k < C::rows; ++k) p[k] = own[(C::gates + k) * pitch];
    }
    static DEVICE V gain(const V* own, int pitch, int g) {
        return own[(C::gates + C::rows + g) * pitch];
    }
    // What the step sees of a gate's product, or of what that is normalised to.
    static DEVICE V seen(const V* own, int pitch, int g, V v) {
        return (NORM<C> ? v * gain(own, pitch, g) : v) + own[g * pitch];
    }

    // What is stored at a step.
    template <int COUNT> DEVICE void load(const void* from, int t, S (&v)[COUNT]) const {
        const S* const first = static_cast<const S*>(from) + index(t, COUNT);
        for (int k = 0; k < COUNT; ++k) v[k] = first[k * int(a.H)];
    }
    // The same; the memory is to bring that of the step so far on, unless it is this one.
    template <int COUNT> DEVICE void load(const void* from, int t, int on, S (&v)[COUNT]) const {
        const S* const first = place(from, t, COUNT);
        const S* const next = settled(first + on * size(COUNT));
        for (int k = 0; k < COUNT; ++k) {
            if (on != 0) prefetch(next + k * int(a.H));
            v[k] = first[k * int(a.H)];
        }
    }

    // For backward of cells without a norm: the first gates, whose sums of x and products lie in x's
    // place, dense, and not among the products.
    static constexpr int SUMMED = NORM<C> ? 0 : C::shared;

    // What recurrent dropout leaves of what a product is fed, or of its gradient.
    DEVICE V dropped(V q) const {
        return seldom(a.d) ? q * value(a.d, state(0)) : q;
    }

    // Calls f(k, share) for each state k of which a share of the old value stays.
    template <class F> DEVICE void each_share(int t, const F& f) const {
        if (!seldom(a.m)) return;
        const int64_t first
            = strides(t, a.m_t) + strides(at.b, a.m_b) + strides(at.n, a.m_n) + at.j;
        for (int k = 0; k < C::states; ++k) {
            if (k >= int(a.E)) return;
            const int64_t from = first + k * a.m_e;
            f(k, a.m_bytes ? V(static_cast<const uint8_t*>(a.m)[from]) : value(a.m, from));
        }
    }

    DEVICE V initial(int k) const { return at.exists && a.s0 ? value(a.s0, state(k)) : 0; }

    // Whether what others make of a unit's values counts them in. Else those of what does not exist,
    // or not at that step, may be any.
    static constexpr bool SUMS_OVER_UNITS = NORM<C> || C::normalises;

    // What a step of the forward scan reads that no other unit computes; x where wanted, or zero.
    // It is loaded as it is stored, and made wide by those who need it: that waits for the memory,
    // which is to bring what a step at time t + onward will read, if that is given and not t.
    template <class E> struct AheadOf {
        E x[C::gates];
        Flags flags;
    };
    using Ahead = AheadOf<V>;

    template <class... On> DEVICE AheadOf<S> load_ahead(int t, bool wanted, On... onward) const {
        AheadOf<S> found = {};
        if (!at.exists) return found;
        found.flags = clock.flags(t, at.b);
        if (found.flags.live() && wanted) load(a.x, t, onward..., found.x);
        return found;
    }

    static DEVICE Ahead widened(const AheadOf<S>& v) {
        Ahead found = {{}, v.flags};
        for (int g = 0; g < C::gates; ++g) found.x[g] = wide(v.x[g]);
        return found;
    }

    DEVICE Ahead ahead(int t, bool wanted) const { return widened(load_ahead(t, wanted)); }

    DEVICE static void enter(const Ahead& v, States s) {
        for (int k = 0; k < C::states; ++k) s[k] = v.flags.fresh() ? 0 : s[k];
    }

    // What shows state k of every step, after so many steps' of others; so does its gradient.
    DEVICE void* shown(int k) const { return k == 0 ? a.output : a.cells; }
    DEVICE int before(int k) const { return k > 1 ? (k - 1) * int(a.T) : 0; }

    // Whether forward may leave them so, in a dense x: what nobody else reads.
    static constexpr bool LEAVES = SUMMED > 0 && C::late == C::gates;

    // And whether it leaves the activations of all gates in x instead. In 16 bits those would be too
    // few for slopes.
    static constexpr bool ACTIVATES = LEAVES && C::activates && sizeof(S) >= 4;

    // What a step leaves in memory, for nobody who waits.
    struct Left {
        V s[C::states], x[C::gates], r[C::gates];
        bool any, live;
    };

    // The next states, in place of s, which has entered the step, of which r is what it sees; given
    // the value that it normalises, if it does, to n.
    DEVICE Left advance(int t, const Ahead& v, Gates r, Parameters p, V value, V n,
                        States s) const {
        Left left = {};
        if (!at.exists) return left;
        for (int g = 0; g < C::gates; ++g) {
            left.x[g] = v.x[g] + r[g];
            left.r[g] = r[g];
        }
        if constexpr (ACTIVATES) C::activations(v.x, r, left.x);
        V next[C::states];
        C::step(v.x, r, s, p, value, n, next);
        if (v.flags.live())
            each_share(t, [&](int k, V old) { next[k] = old * s[k] + (1 - old) * next[k]; });
        for (int k = 0; k < C::states; ++k) {
            if (v.flags.live()) s[k] = next[k];
            left.s[k] = v.flags.live() ? s[k] : 0;
        }
        left.any = true;
        left.live = v.flags.live();
        return left;
    }

    DEVICE void store(int t, const Left& left) const {
        if (!left.any) return;
        for (int k = 0; k < C::states; ++k)
            *place(shown(k), t + before(k), 1) = narrow<S>(left.s[k]);
        if (!LEAVES || a.summed == 0 || !left.live) return;
        S* const x = place(a.x, t, C::gates);
        for (int g = 0; g < (ACTIVATES ? C::gates : SUMMED); ++g)
            x[g * int(a.H)] = narrow<S>(left.x[g]);
        S* const others = place(a.products, t, C::gates - SUMMED);
        for (int g = SUMMED; g < C::gates; ++g)
            others[(g - SUMMED) * int(a.H)] = narrow<S>(left.r[g]);
    }

    DEVICE void leave(States s) const {
        for (int k = 0; at.exists && k < C::states; ++k) put(a.last, state(k), s[k]);
    }

    // The same for backward; r is what was computed of the products, or of a SUMMED gate the sum.
    // Where forward has left activations, those are x, and such gates' r.
    template <class E> struct BehindOf {
        E x[C::gates], r[C::gates], s[C::states], arriving[C::states];
        Flags flags;
    };
    using Behind = BehindOf<V>;

    DEVICE const void* arriving(int k) const { return k == 0 ? a.doutput : a.dcells; }

    // So far on from time t, if both are steps.
    DEVICE int within(int t, int on) const {
        return unsigned(t) < unsigned(a.T) && unsigned(t + on) < unsigned(a.T) ? on : 0;
    }

    template <class... On> DEVICE BehindOf<S> load_behind(int t, On... onward) const {
        BehindOf<S> found = {};
        if (SUMS_OVER_UNITS && !at.exists) return found;
        found.flags = clock.flags(t, at.b);
        if (SUMS_OVER_UNITS && !found.flags.live()) return found;
        constexpr int others = C::gates - SUMMED;
        if (NORMED<C> != Normed::SUMS) {
            S x[C::gates];
            load(a.x, t, onward..., x);
            for (int g = 0; g < C::gates; ++g)
                if (g < SUMMED) found.r[g] = x[g];
                else found.x[g] = x[g];
        }
        if constexpr (others > 0) {
            S products[others];
            load(a.products, t, onward..., products);
            for (int g = 0; g < others; ++g) found.r[SUMMED + g] = products[g];
        }
        const bool first = clock.first(t, at.b);
        const int entered = t - clock.onward;
        for (int k = 0; k < C::states; ++k) {
            S s[1] = {}, arrived[1] = {};
            const void* const from = first ? a.s0 : shown(k);
            const int when = first ? k : entered + before(k);
            if (from && !found.flags.fresh())
                load(from, when, (first ? 0 : within(entered, onward))..., s);
            if (arriving(k)) load(arriving(k), t + before(k), onward..., arrived);
            found.s[k] = s[0];
            found.arriving[k] = arrived[0];
        }
        return found;
    }

    static DEVICE Behind widened(const BehindOf<S>& v) {
        Behind found = {{}, {}, {}, {}, v.flags};
        for (int g = 0; g < C::gates; ++g) {
            found.x[g] = wide(v.x[g]);
            found.r[g] = wide(v.r[g]);
        }
        for (int k = 0; k < C::states; ++k) {
            found.s[k] = wide(v.s[k]);
            found.arriving[k] = wide(v.arriving[k]);
        }
        return found;
    }

    DEVICE Behind behind(int t) const { return widened(load_behind(t)); }

    // What is normalised to r[g] was multiplied with it.
    DEVICE V scale(int t, int g) const {
        return static_cast<const V*>(a.scales)[(int64_t(t) * int(a.B * a.N) + row()) * C::gates + g];
    }

    DEVICE V final(int k) const { return at.exists && a.dlast ? value(a.dlast, state(k)) : 0; }

    // What the step saw: r, and its parameters.
    DEVICE void saw(const Behind& v, const V* own, int pitch, Gates r, Parameters p) const {
        for (int g = 0; g < C::gates; ++g) r[g] = NORM<C> ? seen(own, pitch, g, v.r[g]) : v.r[g];
        parameters(own, pitch, p);
    }

    // Of what reaches the states of a step, what reaches the cell's, and what goes on to the states
    // before.
    DEVICE void reached(int t, const Behind& v, States ds, States next, States past) const {
        for (int k = 0; k < C::states; ++k) {
            next[k] = ds[k] + v.arriving[k];
            past[k] = 0;
        }
        each_share(t, [&](int k, V old) {
            past[k] = old * next[k];
            next[k] = (1 - old) * next[k];
        });
    }

    // The value that the step normalises, if it does, to n, and its gradient.
    struct Within {
        V value, n, dv;
    };

    // What they leave in memory: the gradients of gates from `first` on up to `last`.
    struct Found {
        V dx[C::gates], dr[C::gates];
        int first, last;
    };

    // The gradient of the states that enter the step in place of ds, but for what comes through the
    // products; dr is that of r; dp adds up.
    DEVICE Found vjp(int t, const Behind& v, const V* own, int pitch, States ds, Gates dr,
                    V* dp, int64_t dp_pitch, const Within& within = {}) const {
        for (int g = 0; g < C::gates; ++g) dr[g] = 0;
        if (!at.exists) return {};
        V dx[C::gates] = {};
        if (v.flags.live()) {
            V r[C::gates], p[C::rows + 1], next[C::states], past[C::states], old[C::states];
            V more[C::rows + 1];
            saw(v, own, pitch, r, p);
            reached(t, v, ds, next, past);
            if constexpr (ACTIVATES) {
                V gates[C::gates];
                if (seldom(!a.activated)) C::activations(v.x, r, gates);
                else
                    for (int g = 0; g < C::gates; ++g) gates[g] = g < SUMMED ? r[g] : v.x[g];
                C::Activated::vjp(gates, r, v.s, p, {}, {}, next, {}, dx, dr, old, more);
            } else
                C::vjp(v.x, r, v.s, p, within.value, within.n, next, within.dv, dx, dr, old, more);
            for (int k = 0; k < C::states; ++k) ds[k] = v.flags.fresh() ? 0 : old[k] + past[k];
            for (int k = 0; k < C::rows; ++k) dp[k * dp_pitch] += more[k];
        }
        return found(C::late < C::gates ? C::late : 0, C::gates, dx, dr);
    }

    // The same of the inner step, given the gradient of what it feeds: adds to ds and to dr.
    DEVICE Found inner_vjp(int t, const Behind& v, const V* own, int pitch, V dq, States ds,
                          Gates dr) const {
        static_assert(C::shared == C::gates, "dx is dr");
        if (!at.exists) return {};
        if (v.flags.live()) {
            V r[C::gates], p[C::rows + 1], dx[C::gates], old[C::states] = {};
            saw(v, own, pitch, r, p);
            for (int g = 0; g < C::gates; ++g) dx[g] = dr[g];
            // A zero state lets no gradient through, and that of its norm may overflow 16 bits.
            C::inner_vjp(v.x, r, v.s, p, v.flags.fresh() ? 0 : dq, dx, dr, old);
            for (int k = 0; k < C::states && !v.flags.fresh(); ++k) ds[k] += old[k];
        }
        return found(0, C::late, dr, dr);
    }

    static DEVICE Found found(int first, int last, Gates dx, Gates dr) {
        Found all = {{}, {}, first, last};
        for (int g = 0; g < C::gates; ++g) {
            all.dx[g] = dx[g];
            all.dr[g] = dr[g];
        }
        return all;
    }

    DEVICE void store(int t, const Found& v) const {
        if (v.first >= v.last) return;
        S* const to = place(a.dx, t, C::gates);
        S* const of_r = place(form.dr, t, C::gates);
        for (int g = 0; g < C::gates; ++g) {
            if (g < v.first || g >= v.last) continue;
            to[g * int(a.H)] = narrow<S>(v.dx[g]);
            if (C::shared < C::gates) of_r[g * int(a.H)] = narrow<S>(v.dr[g]);
        }
    }
};

}  // namespace rnnkit
