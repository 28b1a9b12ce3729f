// GRU in both of its forms: h' = (1 - z) * n + z * h; gates reset, z, n.
#pragma once
#include "cell.h"

namespace rnnkit {

// The reset gate after the product: n = tanh(x_n + reset * r_n). ACTIVATED: x holds what
// `activations` gave.
template <class M, bool ACTIVATED = false> struct Gru : Plain<M> {
    using V = typename M::Value;
    static constexpr int gates = 3, states = 1, rows = 0, late = 3, shared = 2;
    static constexpr bool activates = !ACTIVATED;
    using Activated = Gru<M, true>;

    HOST_DEVICE static void activations(const V* x, const V* r, V* a) {
        const V reset = ACTIVATED ? x[0] : M::sigmoid(x[0] + r[0]);
        a[1] = ACTIVATED ? x[1] : M::sigmoid(x[1] + r[1]);
        a[2] = ACTIVATED ? x[2] : M::tanh(x[2] + reset * r[2]);
        a[0] = reset;
    }

    HOST_DEVICE static void step(
        const V* x, const V* r, const V* s, const V*, V, V, V* next) {
        V a[gates];
        activations(x, r, a);
        next[0] = a[2] + a[1] * (s[0] - a[2]);
    }

    HOST_DEVICE static void vjp(
        const V* x, const V* r, const V* s, const V*, V, V, const V* ds, V, V* dx, V* dr, V* old,
        V*) {
        V a[gates];
        activations(x, r, a);
        const V reset = a[0], z = a[1], n = a[2];
        dx[2] = ds[0] * (1 - z) * (1 - n * n);
        dx[1] = ds[0] * (s[0] - n) * slope(z);
        dx[0] = dx[2] * r[2] * slope(reset);
        dr[0] = dx[0];
        dr[1] = dx[1];
        dr[2] = dx[2] * reset;
        old[0] = ds[0] * z;
    }
};

// The reset gate before the product: n = tanh(x_n + W_hn (reset * h)).
template <class M> struct GruBefore : Plain<M> {
    using V = typename M::Value;
    static constexpr int gates = 3, states = 1, rows = 0, late = 2, shared = 3;

    HOST_DEVICE static void step(
        const V* x, const V* r, const V* s, const V*, V, V, V* next) {
        const V z = M::sigmoid(x[1] + r[1]), n = M::tanh(x[2] + r[2]);
        next[0] = n + z * (s[0] - n);
    }

    HOST_DEVICE static void vjp(
        const V* x, const V* r, const V* s, const V*, V, V, const V* ds, V, V* dx, V* dr, V* old,
        V*) {
        const V z = M::sigmoid(x[1] + r[1]), n = M::tanh(x[2] + r[2]);
        dx[0] = dr[0] = V{};
        dx[1] = dr[1] = ds[0] * (s[0] - n) * slope(z);
        dx[2] = dr[2] = ds[0] * (1 - z) * (1 - n * n);
        old[0] = ds[0] * z;
    }

    HOST_DEVICE static V inner_step(const V* x, const V* r, const V* s, const V*) {
        return M::sigmoid(x[0] + r[0]) * s[0];
    }

    HOST_DEVICE static void inner_vjp(
        const V* x, const V* r, const V* s, const V*, V dq, V* dx, V* dr, V* old) {
        const V reset = M::sigmoid(x[0] + r[0]), da = dq * s[0] * slope(reset);
        dx[0] = dx[0] + da;
        dr[0] = dr[0] + da;
        old[0] = old[0] + dq * reset;
    }
};

}  // namespace rnnkit
