// The scan and its backward: who does what, and who waits for whom.
#pragma once
#include "forward.h"
#include "projection.h"
#include "weights.h"

namespace rnnkit {
namespace RNNKIT_ISA {

template <class S, class C> void scan(const Arguments& a, const Pool& pool) {
    const Sharing sharing = share(a, C::gates, sizeof(Real<S>), pool);
    const bool both = a.summed > 0 && C::late == C::gates;
    const Weights<S, C> weights(a, true, both ? a.summed : C::late);
    const Projection<S> projection(a, C::gates, true);
    typename Forward<S, C>::Buffers buffers(a, sharing.split == Split::COLUMNS ? a.B : 0);
    typename Forward<S, C>::Shared shared = {&buffers};
    const auto job = [&](const Team& team) {
        weights.pack(team);
        if (a.input) projection.pack(team);
        team.wait();
        if (a.input) {
            projection.forward(team);
            team.wait();
        }
        walk<Forward<S, C>>(a, weights, sharing, team, shared);
    };
    run(pool, sharing.threads, job);
}

template <class S, class C> void scan_backward(const Arguments& given, const Pool& pool) {
    if constexpr (C::activates)
        if (given.activated) return scan_backward<S, typename C::Activated>(given, pool);
    Arguments a = given;
    const Array<S> dx(a.dx ? 0 : a.T * a.B * a.N * C::gates * a.H);
    if (!a.dx) a.dx = dx.data;
    const Sharing sharing = share(a, C::gates, sizeof(Real<S>), pool);
    const Weights<S, C> weights(a, false, C::late);
    // Where everything was added to x, no products are missing.
    const bool missing = products_missing<C>(a);
    const Weights<S, C> again(a, true, C::late, missing);
    const Projection<S> projection(a, C::gates, false);
    typename Backward<S, C>::Buffers buffers(a, sharing.split == Split::COLUMNS ? a.B : 0);
    typename Backward<S, C>::Shared shared(a, &buffers, &again);
    const auto job = [&](const Team& team) {
        weights.pack(team);
        if (a.dinput) projection.pack(team);
        if (missing) again.pack(team);
        team.wait();
        walk<Backward<S, C>>(a, weights, sharing, team, shared);
        team.wait();
        WeightGradients<S, C>{a, shared, team}.run();
        if (a.input) projection.backward(team);
    };
    run(pool, sharing.threads, job);
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
