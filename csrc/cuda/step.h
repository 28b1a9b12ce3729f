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

    DEVICE int64_t row(int t) const { return (t * a.B + at.b) * a.N + at.n; }
    DEVICE int64_t plane() const { return a.B * a.N * a.H; }
    DEVICE int64_t state(int k) const { return k * plane() + (at.b * a.N + at.n) * a.H + at.j; }

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

    // What is stored there, and what the memory is to bring from so far on, where it is told to.
    static DEVICE S stored(const void* from, int64_t index, int64_t on = 0) {
        const S* const place = static_cast<const S*>(from) + index;
        if (on != 0) prefetch(place + on);
        return *place;
    }

    DEVICE int64_t first_x(int t) const {
        return t * a.x_t + at.b * a.x_b + at.n * a.x_n + at.j;
    }
    DEVICE void load_x(int t, int onward, S (&x)[C::gates]) const {
        const int64_t first = first_x(t), on = onward * a.x_t;
        for (int g = 0; g < C::gates; ++g) x[g] = stored(a.x, first + g * a.x_g, on);
    }

    // For backward of cells without a norm: the first gates, whose sums of x and products lie in x's
    // place, dense, and not among the products.
    static constexpr int SUMMED = NORM<C> ? 0 : C::shared;

    // Of gate g, among all; of its product, among those that are not summed.
    DEVICE int64_t gate(int t, int g) const { return (row(t) * C::gates + g) * a.H + at.j; }
    DEVICE int64_t product(int t, int g) const {
        return (row(t) * (C::gates - SUMMED) + g - SUMMED) * a.H + at.j;
    }

    // What recurrent dropout leaves of what a product is fed, or of its gradient.
    DEVICE V dropped(V q) const {
        return a.d ? q * value(a.d, (at.b * a.N + at.n) * a.H + at.j) : q;
    }

    // The share of the old value that stays, of state k.
    DEVICE V share(int t, int k) const {
        const int64_t from = t * a.m_t + at.b * a.m_b + at.n * a.m_n + k * a.m_e + at.j;
        return a.m_bytes ? V(static_cast<const uint8_t*>(a.m)[from]) : value(a.m, from);
    }

    DEVICE V initial(int k) const { return at.exists && a.s0 ? value(a.s0, state(k)) : 0; }

    // What a step of the forward scan reads that no other unit computes; x where wanted, or zero.
    // It is loaded as it is stored, and made wide by those who need it: that waits for the memory,
    // which is to bring what a step at time t + onward will read, unless that is t.
    template <class E> struct AheadOf {
        E x[C::gates];
        bool live, fresh;
    };
    using Ahead = AheadOf<V>;

    DEVICE AheadOf<S> load_ahead(int t, int onward, bool wanted) const {
        AheadOf<S> found = {};
        if (!at.exists) return found;
        clock.tell(t, at.b, found.live, found.fresh);
        if (found.live && wanted) load_x(t, onward, found.x);
        return found;
    }

    static DEVICE Ahead widened(const AheadOf<S>& v) {
        Ahead found = {{}, v.live, v.fresh};
        for (int g = 0; g < C::gates; ++g) found.x[g] = wide(v.x[g]);
        return found;
    }

    DEVICE Ahead ahead(int t, bool wanted) const { return widened(load_ahead(t, 0, wanted)); }

    DEVICE static void enter(const Ahead& v, States s) {
        for (int k = 0; k < C::states; ++k) s[k] = v.fresh ? 0 : s[k];
    }

    // What shows state k of every step, and where, as what shows its gradient has it.
    DEVICE void* shown(int k) const { return k == 0 ? a.output : a.cells; }
    DEVICE int64_t element(int t, int k) const {
        return (k == 0 ? 0 : k - 1) * a.T * plane() + row(t) * a.H + at.j;
    }

    // Whether forward may leave them so, in a dense x: what nobody else reads.
    static constexpr bool LEAVES = SUMMED > 0 && C::late == C::gates;

    DEVICE void leave_gates(int t, const Ahead& v, Gates r) const {
        for (int g = 0; g < C::gates; ++g)
            if (g < SUMMED) put(const_cast<void*>(a.x), gate(t, g), v.x[g] + r[g]);
            else put(a.products, product(t, g), r[g]);
    }

    // The next states, in place of s, which has entered the step, of which r is what it sees; given
    // the value that it normalises, if it does, to n.
    DEVICE void advance(int t, const Ahead& v, Gates r, Parameters p, V value, V n,
                        States s) const {
        if (!at.exists) return;
        if (LEAVES && a.summed > 0 && v.live) leave_gates(t, v, r);
        V next[C::states];
        C::step(v.x, r, s, p, value, n, next);
        for (int k = 0; k < C::states; ++k) {
            if (v.live && a.m && k < a.E) {
                const V stays = share(t, k);
                next[k] = stays * s[k] + (1 - stays) * next[k];
            }
            if (v.live) s[k] = next[k];
            put(shown(k), element(t, k), v.live ? s[k] : 0);
        }
    }

    DEVICE void leave(States s) const {
        for (int k = 0; at.exists && k < C::states; ++k) put(a.last, state(k), s[k]);
    }

    // The same for backward; r is what was computed of the products, or of a SUMMED gate the sum.
    template <class E> struct BehindOf {
        E x[C::gates], r[C::gates], s[C::states], arriving[C::states];
        bool live, fresh;
    };
    using Behind = BehindOf<V>;

    DEVICE const void* arriving(int k) const { return k == 0 ? a.doutput : a.dcells; }

    DEVICE BehindOf<S> load_behind(int t, int onward) const {
        BehindOf<S> found = {};
        if (!at.exists) return found;
        clock.tell(t, at.b, found.live, found.fresh);
        if (!found.live) return found;
        const int64_t on = onward * plane();
        if (NORMED<C> == Normed::PRODUCTS) load_x(t, onward, found.x);
        for (int g = 0; g < C::gates; ++g) {
            S& of_x = g < SUMMED ? found.r[g] : found.x[g];
            if (!NORM<C>) of_x = stored(a.x, gate(t, g), on * C::gates);
            if (g >= SUMMED) found.r[g] = stored(a.products, product(t, g), on * (C::gates - SUMMED));
        }
        const bool first = clock.first(t, at.b);
        const int64_t before = clock.before() * plane();
        // Where there is such a step for the next one, too.
        const int earlier = t + onward + clock.before();
        const int64_t on_states = earlier >= 0 && earlier < a.T ? on : 0;
        for (int k = 0; k < C::states; ++k) {
            if (!first && !found.fresh) found.s[k] = stored(shown(k), element(t, k) + before, on_states);
            if (first && !found.fresh && a.s0) found.s[k] = stored(a.s0, state(k));
            if (arriving(k)) found.arriving[k] = stored(arriving(k), element(t, k), on);
        }
        return found;
    }

    static DEVICE Behind widened(const BehindOf<S>& v) {
        Behind found = {{}, {}, {}, {}, v.live, v.fresh};
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

    DEVICE Behind behind(int t) const { return widened(load_behind(t, 0)); }

    // What is normalised to r[g] was multiplied with it.
    DEVICE V scale(int t, int g) const {
        return static_cast<const V*>(a.scales)[row(t) * C::gates + g];
    }

    DEVICE V final(int k) const { return at.exists && a.dlast ? value(a.dlast, state(k)) : 0; }

    // What the step saw: r, and its parameters.
    DEVICE void saw(const Behind& v, const V* own, int pitch, Gates r, Parameters p) const {
        for (int g = 0; g < C::gates; ++g) r[g] = NORM<C> ? seen(own, pitch, g, v.r[g]) : v.r[g];
        parameters(own, pitch, p);
    }

    // All that reaches the states of a step, and what of it reaches the cell's.
    DEVICE void reached(int t, const Behind& v, States ds, States total, States next) const {
        for (int k = 0; k < C::states; ++k) {
            total[k] = ds[k] + v.arriving[k];
            next[k] = total[k] * (at.exists && a.m && k < a.E ? 1 - share(t, k) : 1);
        }
    }

    // The value that the step normalises, if it does, to n, and its gradient.
    struct Within {
        V value, n, dv;
    };

    // The gradient of the states that enter the step in place of ds, but for what comes through the
    // products; dr is that of r; dp adds up.
    DEVICE void vjp(int t, const Behind& v, const V* own, int pitch, States ds, Gates dr,
                    V* dp, int64_t dp_pitch, const Within& within = {}) const {
        for (int g = 0; g < C::gates; ++g) dr[g] = 0;
        if (!at.exists) return;
        V dx[C::gates] = {};
        if (v.live) {
            V r[C::gates], p[C::rows + 1], total[C::states], next[C::states], old[C::states];
            V more[C::rows + 1];
            saw(v, own, pitch, r, p);
            reached(t, v, ds, total, next);
            C::vjp(v.x, r, v.s, p, within.value, within.n, next, within.dv, dx, dr, old, more);
            for (int k = 0; k < C::states; ++k) {
                if (a.m && k < a.E) old[k] += share(t, k) * total[k];
                ds[k] = v.fresh ? 0 : old[k];
            }
            for (int k = 0; k < C::rows; ++k) dp[k * dp_pitch] += more[k];
        }
        store(t, C::late < C::gates ? C::late : 0, C::gates, dx, dr);
    }

    // The same of the inner step, given the gradient of what it feeds: adds to ds and to dr.
    DEVICE void inner_vjp(int t, const Behind& v, const V* own, int pitch, V dq, States ds,
                          Gates dr) const {
        static_assert(C::shared == C::gates, "dx is dr");
        if (!at.exists) return;
        if (v.live) {
            V r[C::gates], p[C::rows + 1], dx[C::gates], old[C::states] = {};
            saw(v, own, pitch, r, p);
            for (int g = 0; g < C::gates; ++g) dx[g] = dr[g];
            // A zero state lets no gradient through, and that of its norm may overflow 16 bits.
            C::inner_vjp(v.x, r, v.s, p, v.fresh ? 0 : dq, dx, dr, old);
            for (int k = 0; k < C::states && !v.fresh; ++k) ds[k] += old[k];
        }
        store(t, 0, C::late, dr, dr);
    }

    DEVICE void store(int t, int first, int last, Gates dx, Gates dr) const {
        for (int g = first; g < last; ++g) {
            const int64_t to = (row(t) * C::gates + g) * a.H + at.j;
            put(a.dx, to, dx[g]);
            if (C::shared < C::gates) put(form.dr, to, dr[g]);
        }
    }
};

}  // namespace rnnkit
