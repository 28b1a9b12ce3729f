// The stepwise scan, for weights that the multiprocessors do not hold together: each step is one
// product by cuBLAS, which reads them again, and one launch for all the rest of the step.
//
// What a launch leaves for the next product and launch does not lie by time, so that the same ones
// serve groups of both directions. The host neither allocates nor waits: a graph can capture it.
#pragma once
#include "gemm.h"
#include "step.h"

namespace rnnkit {

// What the loop has beside the arguments of the scan. rnnkit/cuda/stepwise.py fills it in this
// order, eight bytes a field.
struct Steps {
    void* handle;   // cuBLAS's, with the stream of the launches
    Gemm gemm;
    void* states;   // (S, B, N, H), or their gradients, in the arithmetic's type
    void* fed;      // what the product is fed, in x's type: h (B, N, H), backward dr (B, N, G, H)
    void* product;  // r (B, N, G, H) without its bias, backward dh (B, N, H), in states' type
};

// Threads of a block: neighbouring units of one row.
constexpr int UNITS_PER_BLOCK = 128;

// A thread's unit of a row. Products are 1 to T, launches 0 to T: launch k makes of product k what
// product k + 1 is fed.
template <class S, class C> struct Stepwise {
    using V = typename C::V;

    const Arguments& a;
    const Steps& steps;
    const Unit<S, C> unit;

    // Of a gate in (B, N, G, H).
    DEVICE int64_t index(int gate) const {
        return (int64_t(block_x()) * C::gates + gate) * a.H + unit.at.j;
    }

    DEVICE V& state(int k) const { return static_cast<V*>(steps.states)[unit.state(k)]; }
    DEVICE V product(int64_t at) const { return static_cast<const V*>(steps.product)[at]; }

    // The bias of each gate, and the cell's own parameters.
    DEVICE void load_own(V (&own)[C::gates + C::rows]) const {
        const int64_t n = unit.at.n, j = unit.at.j;
        for (int g = 0; g < C::gates; ++g)
            own[g] = a.b ? unit.value(a.b, (n * C::gates + g) * a.H + j) : 0;
        for (int k = 0; k < C::rows; ++k)
            own[C::gates + k] = unit.value(a.p, (n * C::rows + k) * a.H + j);
    }

    DEVICE void forward(int k) const {
        V s[C::states];
        if (k == 0)
            for (int i = 0; i < C::states; ++i) s[i] = unit.initial(i);
        else
            advance(unit.clock.time(k - 1), s);
        if (k == a.T) {
            unit.leave(s);
            return;
        }
        for (int i = 0; i < C::states; ++i) state(i) = s[i];
        unit.put(steps.fed, unit.state(0), unit.dropped(s[0]));
    }

    DEVICE void advance(int t, V (&s)[C::states]) const {
        const auto ahead = unit.ahead(t);
        V own[C::gates + C::rows], r[C::gates];
        load_own(own);
        for (int g = 0; g < C::gates; ++g) r[g] = product(index(g));
        for (int i = 0; i < C::states; ++i) s[i] = state(i);
        unit.step(t, ahead, r, own, 1, s);
    }

    DEVICE void backward(int k) const {
        V own[C::gates + C::rows], ds[C::states], dr[C::gates];
        collect(k, ds);
        if (k == a.T) {
            for (int i = 0; i < C::states; ++i) unit.put(a.ds0, unit.state(i), ds[i]);
            return;
        }
        const int t = unit.clock.time(int(a.T) - 1 - k);
        load_own(own);
        unit.vjp(t, unit.behind(t), own, 1, ds, dr, dp(0), a.H);
        for (int i = 0; i < C::states; ++i) state(i) = ds[i];
        for (int g = 0; g < C::gates; ++g) unit.put(steps.fed, index(g), dr[g]);
    }

    // ds of the states that enter the last step but k, with what came through its products.
    DEVICE void collect(int k, V (&ds)[C::states]) const {
        if (k == 0) {
            for (int i = 0; i < C::states; ++i) ds[i] = unit.final(i);
            for (int i = 0; i < C::rows; ++i) *dp(i) = 0;
            return;
        }
        for (int i = 0; i < C::states; ++i) ds[i] = state(i);
        if (!unit.clock.fresh(unit.clock.time(int(a.T) - k), unit.at.b))
            ds[0] += unit.dropped(product(unit.state(0)));
    }

    // This row's part of the gradient of a parameter, of dp (B, N, P, H).
    DEVICE V* dp(int k) const {
        return static_cast<V*>(a.dp) + (int64_t(block_x()) * C::rows + k) * a.H + unit.at.j;
    }
};

template <class S, class C, bool BACKWARD>
KERNEL(UNITS_PER_BLOCK, 8)
void one_step(const Arguments a, const Form form, const Steps steps, const int k) {
    const int row = block_x(), N = int(a.N), j = block_y() * UNITS_PER_BLOCK + thread();
    if (j >= a.H) return;
    const Clock clock(a, row % N);
    const Stepwise<S, C> s = {a, steps, {a, form, clock, {row / N, clock.n, j, true}}};
    if constexpr (BACKWARD) s.backward(k);
    else s.forward(k);
}

// product = fed @ w.T of every group, backward fed @ w, for w (G * H, H). All of them lie by rows:
// by columns they are transposed, and so product.T = w @ fed.T.
template <class Kind, class C, bool BACKWARD> int multiply(const Arguments& a, const Steps& steps) {
    constexpr int w_is = BACKWARD ? cublas::AS_IS : cublas::TRANSPOSED;
    const typename Kind::Sum one = 1, zero = 0;
    const int64_t gates = C::gates * a.H, width = BACKWARD ? a.H : gates;
    const int64_t depth = BACKWARD ? gates : a.H;
    return steps.gemm(steps.handle, w_is, cublas::AS_IS, int(width), int(a.B), int(depth), &one,
                      a.w, Kind::type, int(a.H), gates * a.H, steps.fed, Kind::type,
                      int(a.N * depth), depth, &zero, steps.product, Kind::sum_type,
                      int(a.N * width), width, int(a.N), Kind::compute, cublas::DEFAULT);
}

// 0; what launch_error() describes; or cuBLAS's status, negative.
template <class Kind, class C, bool BACKWARD>
int launch_stepwise(const Arguments& a, const Form& form, const Steps& steps) {
    Launch how;
    how.x = int(a.B * a.N);
    how.y = int((a.H + UNITS_PER_BLOCK - 1) / UNITS_PER_BLOCK);
    how.threads = UNITS_PER_BLOCK;
    how.stream = form.stream;
    int error = 0;
    for (int k = 0; error == 0 && k <= a.T; ++k) {
        if (k > 0) error = -multiply<Kind, C, BACKWARD>(a, steps);
        if (error == 0)
            error = launch(one_step<typename Kind::S, C, BACKWARD>, how, a, form, steps, k);
    }
    return error;
}

}  // namespace rnnkit
