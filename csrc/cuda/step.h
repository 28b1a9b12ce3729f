// One unit of one row at one step, forward and backward: what is loaded for it, and what is stored.
#pragma once
#include "arguments.h"
#include "math.h"

namespace rnnkit {

// Which way time runs for a group, and where a row's sequence begins, ends and is parted.
struct Clock {
    const Arguments& a;
    int n;
    bool back;

    DEVICE Clock(const Arguments& a, int n)
        : a(a), n(n), back(a.reverse >> (n / (a.N / a.runs)) & 1) {}

    DEVICE int time(int k) const { return back ? int(a.T) - 1 - k : k; }

    DEVICE bool live(int t, int b) const {
        return !a.lengths || t < a.lengths[b * a.lengths_b + n * a.lengths_n];
    }

    // Whether the row enters the step with a zero state: where a reset parts it from the step that
    // came before in the group's order.
    DEVICE bool fresh(int t, int b) const {
        if (!a.resets) return false;
        const int reset = back ? t + 1 : t;
        return reset < a.T && live(reset, b)
               && a.resets[reset * a.resets_t + b * a.resets_b + n * a.resets_n];
    }
};

// A unit of a row of the batch; `exists` is false past the last one.
struct Place {
    int b, n, j;
    bool exists;
};

template <class T, class C> struct Unit {
    using S = T;

    const Arguments& a;
    const Form& form;
    const Clock& clock;
    Place at;

    DEVICE int64_t row(int t) const { return (t * a.B + at.b) * a.N + at.n; }
    DEVICE int64_t plane() const { return a.B * a.N * a.H; }
    DEVICE int64_t state(int k) const { return k * plane() + (at.b * a.N + at.n) * a.H + at.j; }

    static DEVICE float value(const void* from, int64_t index) {
        return wide(static_cast<const S*>(from)[index]);
    }
    static DEVICE void put(void* to, int64_t index, float v) {
        static_cast<S*>(to)[index] = narrow<S>(v);
    }

    DEVICE void load_x(int t, float (&x)[C::gates]) const {
        const int64_t from = t * a.x_t + at.b * a.x_b + at.n * a.x_n + at.j;
        for (int g = 0; g < C::gates; ++g) x[g] = value(a.x, from + g * a.x_g);
    }

    // What recurrent dropout leaves of h, or of its gradient.
    DEVICE float dropped(float h) const {
        return a.d ? h * value(a.d, (at.b * a.N + at.n) * a.H + at.j) : h;
    }

    // The share of the old value that stays, of state k.
    DEVICE float share(int t, int k) const {
        const int64_t from = t * a.m_t + at.b * a.m_b + at.n * a.m_n + k * a.m_e + at.j;
        return a.m_bytes ? float(static_cast<const uint8_t*>(a.m)[from]) : value(a.m, from);
    }

    DEVICE float initial(int k) const { return at.exists && a.s0 ? value(a.s0, state(k)) : 0; }

    // What a step of the forward scan reads that no other unit computes.
    struct Ahead {
        float x[C::gates];
        bool live, fresh;
    };

    DEVICE Ahead ahead(int t) const {
        Ahead found = {};
        if (!at.exists) return found;
        found.live = clock.live(t, at.b);
        found.fresh = clock.fresh(t, at.b);
        if (found.live) load_x(t, found.x);
        return found;
    }

    // The next states, in place of s; r holds the products, `own` the unit's bias and parameters.
    DEVICE void step(int t, const Ahead& v, float (&r)[C::gates], const float* own, int pitch,
                     float (&s)[C::states]) const {
        if (!at.exists) return;
        float p[C::rows + 1], next[C::states];
        for (int k = 0; k < C::states; ++k) s[k] = v.fresh ? 0 : s[k];
        for (int g = 0; g < C::gates; ++g) r[g] = (v.fresh ? 0 : r[g]) + own[g * pitch];
        for (int k = 0; k < C::rows; ++k) p[k] = own[(C::gates + k) * pitch];
        C::step(v.x, r, s, p, 0, 0, next);
        for (int k = 0; k < C::states; ++k) {
            if (v.live && a.m && k < a.E) {
                const float stays = share(t, k);
                next[k] = stays * s[k] + (1 - stays) * next[k];
            }
            if (v.live) s[k] = next[k];
            void* const shown = k == 0 ? a.output : a.cells;
            const int64_t before = k == 0 ? 0 : (k - 1) * a.T * plane();
            put(shown, before + row(t) * a.H + at.j, v.live ? s[k] : 0);
        }
    }

    DEVICE void leave(const float (&s)[C::states]) const {
        for (int k = 0; at.exists && k < C::states; ++k) put(a.last, state(k), s[k]);
    }

    // The same for backward. Where all gates see x and r as x + r only, that is r.
    struct Behind {
        float x[C::gates], r[C::gates], s[C::states], arriving[C::states];
        bool live, fresh;
    };

    DEVICE Behind behind(int t) const {
        Behind found = {};
        if (!at.exists) return found;
        found.live = clock.live(t, at.b);
        found.fresh = clock.fresh(t, at.b);
        if (!found.live) return found;
        if constexpr (C::shared < C::gates) load_x(t, found.x);
        const int64_t here = row(t) * a.H + at.j, whole = a.T * plane();
        for (int g = 0; g < C::gates; ++g)
            found.r[g] = value(a.products, (row(t) * C::gates + g) * a.H + at.j);
        for (int k = 0; k < C::states; ++k) {
            found.s[k] = value(form.entered, k * whole + here);
            const void* const from = k == 0 ? a.doutput : a.dcells;
            found.arriving[k] = from ? value(from, (k == 0 ? 0 : k - 1) * whole + here) : 0;
        }
        return found;
    }

    DEVICE float final(int k) const { return at.exists && a.dlast ? value(a.dlast, state(k)) : 0; }

    // The gradient of the states that enter the step in place of ds, but for what comes through the
    // products, whose gradient is dr; dp adds up.
    DEVICE void vjp(int t, const Behind& v, const float* own, int pitch,
                    float (&ds)[C::states], float (&dr)[C::gates], float* dp,
                    int64_t dp_pitch) const {
        for (int g = 0; g < C::gates; ++g) dr[g] = 0;
        if (!at.exists) return;
        float dx[C::gates] = {};
        if (v.live) {
            float p[C::rows + 1], total[C::states], next[C::states], old[C::states];
            float more[C::rows + 1];
            for (int k = 0; k < C::rows; ++k) p[k] = own[(C::gates + k) * pitch];
            for (int k = 0; k < C::states; ++k) {
                total[k] = ds[k] + v.arriving[k];
                next[k] = total[k] * (a.m && k < a.E ? 1 - share(t, k) : 1);
            }
            C::vjp(v.x, v.r, v.s, p, 0, 0, next, 0, dx, dr, old, more);
            for (int k = 0; k < C::states; ++k) {
                if (a.m && k < a.E) old[k] += share(t, k) * total[k];
                ds[k] = v.fresh ? 0 : old[k];
            }
            for (int k = 0; k < C::rows; ++k) dp[k * dp_pitch] += more[k];
        }
        for (int g = 0; g < C::gates; ++g) {
            const int to = (row(t) * C::gates + g) * a.H + at.j;
            put(a.dx, to, dx[g]);
            if (C::shared < C::gates) put(form.dr, to, dr[g]);
        }
    }
};

}  // namespace rnnkit
