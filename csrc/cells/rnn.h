// Elman's RNN: h' = act(x + r).
#pragma once
#include "cell.h"

namespace rnnkit {

template <class M, bool RELU> struct Rnn : Plain<M> {
    using V = typename M::Value;
    static constexpr int gates = 1, states = 1, rows = 0, late = 1, shared = 1;

    HOST_DEVICE static void step(
        const V* x, const V* r, const V*, const V*, V, V, V* next) {
        next[0] = RELU ? M::relu(x[0] + r[0]) : M::tanh(x[0] + r[0]);
    }

    HOST_DEVICE static void vjp(
        const V* x, const V* r, const V*, const V*, V, V, const V* ds, V, V* dx, V* dr, V* old,
        V*) {
        const V a = x[0] + r[0];
        if constexpr (RELU) {
            dx[0] = ds[0] * M::positive(a);
        } else {
            const V h = M::tanh(a);
            dx[0] = ds[0] * (1 - h * h);
        }
        dr[0] = dx[0];
        old[0] = V{};
    }
};

}  // namespace rnnkit
