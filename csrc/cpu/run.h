// The scan and its backward: who does what, and who waits for whom.
#pragma once
#include "forward.h"
#include "projection.h"
#include "weights.h"

namespace rnnkit {
namespace RNNKIT_ISA {

template <class S, class C> void scan(const Arguments& a, const Pool& pool) {
    const Sharing sharing = share(a, C::gates, sizeof(Real<S>), pool);
    const Weights<S, C> weights(a, true);
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

template <class S, class C> void scan_backward(const Arguments& a, const Pool& pool) {
    const Sharing sharing = share(a, C::gates, sizeof(Real<S>), pool);
    const Weights<S, C> weights(a, false), again(a, true, !a.products);
    const Projection<S> projection(a, C::gates, false);
    typename Backward<S, C>::Buffers buffers(a, sharing.split == Split::COLUMNS ? a.B : 0);
    typename Backward<S, C>::Shared shared(a, &buffers, &again);
    const auto job = [&](const Team& team) {
        weights.pack(team);
        if (a.dinput) projection.pack(team);
        if (!a.products) again.pack(team);
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
