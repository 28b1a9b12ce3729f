// LSTM in all its forms: c' = f * c + i * g, h' = o * tanh(c'); gates i, f, g, o; states h, c.
//
// Peepholes p[0..2]: i and f see the old c, o the new one. With a norm, whose gain and bias are the
// last two of p, h' = o * tanh(LN(c')); with CARRY, LN(c') is also what is carried on. ACTIVATED: x
// holds what `activations` gave.
#pragma once
#include "cell.h"

namespace rnnkit {

template <class M, bool PEEPHOLE, bool NORM, bool CARRY, bool ACTIVATED = false>
struct Lstm : Plain<M> {
    using V = typename M::Value;
    static constexpr int gates = 4, states = 2, late = 4, shared = 4;
    static constexpr int rows = 3 * PEEPHOLE + 2 * NORM;
    static constexpr bool normalises = NORM, activates = !PEEPHOLE && !NORM && !ACTIVATED;
    using Activated = Lstm<M, PEEPHOLE, NORM, CARRY, true>;

    struct Inputs {
        V i, f, g;
    };

    HOST_DEVICE static Inputs inputs(const V* x, const V* r, const V* s, const V* p) {
        if constexpr (ACTIVATED) return {x[0], x[1], x[2]};
        V i = x[0] + r[0], f = x[1] + r[1];
        if constexpr (PEEPHOLE) {
            i = i + p[0] * s[1];
            f = f + p[1] * s[1];
        }
        return {M::sigmoid(i), M::sigmoid(f), M::tanh(x[2] + r[2])};
    }

    // What the output sees of c', what is carried on, and the output gate.
    struct Outputs {
        V seen, c, o;
    };

    HOST_DEVICE static Outputs outputs(
        const V* x, const V* r, const V* p, V v, V n) {
        V seen = v;
        if constexpr (NORM) seen = n * p[rows - 2] + p[rows - 1];
        const V c = CARRY ? seen : v;
        if constexpr (ACTIVATED) return {seen, c, x[3]};
        V o = x[3] + r[3];
        if constexpr (PEEPHOLE) o = o + p[2] * c;
        return {seen, c, M::sigmoid(o)};
    }

    HOST_DEVICE static V normalised(const V* x, const V* r, const V* s, const V* p) {
        const Inputs in = inputs(x, r, s, p);
        return in.f * s[1] + in.i * in.g;
    }

    HOST_DEVICE static void step(
        const V* x, const V* r, const V* s, const V* p, V v, V n, V* next) {
        if constexpr (!NORM) v = normalised(x, r, s, p);
        const Outputs out = outputs(x, r, p, v, n);
        next[0] = out.o * M::tanh(out.seen);
        next[1] = out.c;
    }

    HOST_DEVICE static void activations(const V* x, const V* r, V* a) {
        const Inputs in = inputs(x, r, nullptr, nullptr);
        a[0] = in.i;
        a[1] = in.f;
        a[2] = in.g;
        a[3] = outputs(x, r, nullptr, V{}, V{}).o;
    }

    // The gradients of the output gate, of what is carried on, and of what the output sees.
    struct Arriving {
        V o, c, seen;
    };

    HOST_DEVICE static Arriving arriving(const Outputs& out, const V* p, const V* ds) {
        const V t = M::tanh(out.seen);
        Arriving d = {ds[0] * t * slope(out.o), ds[1], ds[0] * out.o * (1 - t * t)};
        if constexpr (PEEPHOLE) d.c = d.c + d.o * p[2];
        if constexpr (CARRY) d.seen = d.seen + d.c;
        return d;
    }

    HOST_DEVICE static V normalised_gradient(
        const V* x, const V* r, const V*, const V* p, V v, V n, const V* ds) {
        if constexpr (NORM) return arriving(outputs(x, r, p, v, n), p, ds).seen * p[rows - 2];
        return V{};
    }

    HOST_DEVICE static void vjp(
        const V* x, const V* r, const V* s, const V* p, V v, V n, const V* ds, V dv, V* dx, V* dr,
        V* old, V* dp) {
        const Inputs in = inputs(x, r, s, p);
        if constexpr (!NORM) v = in.f * s[1] + in.i * in.g;
        const Outputs out = outputs(x, r, p, v, n);
        const Arriving d = arriving(out, p, ds);
        V dc = d.c + d.seen;
        if constexpr (NORM) {
            dp[rows - 2] = d.seen * n;
            dp[rows - 1] = d.seen;
            dc = CARRY ? dv : d.c + dv;
        }
        dx[0] = dc * in.g * slope(in.i);
        dx[1] = dc * s[1] * slope(in.f);
        dx[2] = dc * in.i * (1 - in.g * in.g);
        dx[3] = d.o;
        old[0] = V{};
        old[1] = dc * in.f;
        if constexpr (PEEPHOLE) {
            dp[0] = dx[0] * s[1];
            dp[1] = dx[1] * s[1];
            dp[2] = d.o * out.c;
            old[1] = old[1] + dx[0] * p[0] + dx[1] * p[1];
        }
        for (int g = 0; g < gates; ++g) dr[g] = dx[g];
    }
};

}  // namespace rnnkit
