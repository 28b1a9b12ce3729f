// What a cell is for the kernels: the arithmetic of one step on values of one unit.
//
// A cell is a struct of static functions over Math, which brings the type of a value (a float, or a
// vector of them: one for each of several units) and its functions. Written independently of the
// equations in torch (rnnkit/cells), which judge them.
//
//   gates, states, rows   counts; rows: parameters of the step
//   late                  the first gate whose product waits for inner_step; gates if there is none
//   shared                the gates before it have dr = dx
//   normalises            step normalises a value over all units: see below
//   activates             it has activations(x, r, a), and a cell Activated whose vjp takes a for x:
//                         what forward has computed of the gates, backward need not
//
//   step(x, r, s, p, v, n, next)                     the next states, h first
//   vjp(x, r, s, p, v, n, ds, dv, dx, dr, old, dp)   the gradients, given those of the next states
//   inner_step(x, r, s, p) -> q                      what the late gates' product is fed
//   inner_vjp(x, r, s, p, dq, dx, dr, old)           adds to its gradients, over the early gates
//
// A cell that normalises has two more, since a kernel must sum over units between them:
//   normalised(x, r, s, p) -> v                      of which n is the normalised value
//   normalised_gradient(x, r, s, p, v, n, ds) -> dn  of which dv is the gradient of v
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace rnnkit {

// The derivative of the logistic function, given its value.
template <class V> HOST_DEVICE V slope(V s) { return s * (1 - s); }

// What cells without an inner step or a norm in the step have.
template <class M> struct Plain {
    using V = typename M::Value;
    static constexpr bool normalises = false, activates = false;
    HOST_DEVICE static V inner_step(const V*, const V*, const V*, const V*) { return V{}; }
    HOST_DEVICE static void inner_vjp(
        const V*, const V*, const V*, const V*, V, V*, V*, V*) {}
    HOST_DEVICE static V normalised(const V*, const V*, const V*, const V*) { return V{}; }
    HOST_DEVICE static V normalised_gradient(
        const V*, const V*, const V*, const V*, V, V, const V*) { return V{}; }
};

}  // namespace rnnkit
