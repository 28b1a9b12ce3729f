// The gradients that are sums over all steps and rows: of the weights, the biases and the cell's
// parameters. Each is summed in one fixed order, whoever computes it.
#pragma once
#include "backward.h"
#include "outer.h"

namespace rnnkit {
namespace RNNKIT_ISA {

template <class S, class C> struct WeightGradients {
    using R = Real<S>;
    using V = Vector<R>;
    using Shared = typename Backward<S, C>::Shared;

    const Arguments& a;
    const Shared& shared;
    const Team& team;

    void run() const {
        for (int64_t n = 0; n < a.N; ++n) {
            if (a.dw) {
                gates(n, 0, C::late, false);
                if (C::late < C::gates) gates(n, C::late, C::gates, true);
            }
            parameters(n);
        }
    }

    // dw and db of some gates: this thread's share of them.
    void gates(int64_t n, int first_gate, int last_gate, bool late) const {
        const int64_t H = a.H, G = C::gates, all = (last_gate - first_gate) * H;
        const int64_t begin = first_gate * H + team.begin(all);
        const int64_t end = first_gate * H + team.end(all), kept = shared.own_gates * H;
        if (begin == end) return;
        const Sequence sequence(a, n);
        OuterProduct<S> sum(begin, end, H, static_cast<S*>(a.dw) + (n * G * H + begin) * H);
        for (int64_t t = 0; t < a.T; ++t)
            for (int64_t b = 0; b < a.B; ++b) {
                if (t >= sequence.length(b)) continue;
                const int64_t at = sequence.at(t, b);
                sum.take(static_cast<const S*>(a.dx) + at * G * H, 0, kept);
                sum.take(shared.dr + at * (G * H - kept), kept, G * H);
                if (late)
                    sum.add(static_cast<const R*>(shared.fed + at * H));
                else
                    add_state(sequence, t, b, sum);
            }
        sum.finish(a.norm || !a.db ? nullptr : static_cast<S*>(a.db) + n * G * H + begin);
    }

    // h as step t was entered with it, times d.
    void add_state(const Sequence& sequence, int64_t t, int64_t b, OuterProduct<S>& sum) const {
        const S* h = entering<S>(a, sequence, 0, t, b);
        if (h != nullptr && !a.d) return sum.add(h);
        R* const line = sum.line;
        if (h == nullptr) {
            sum.line.zero(a.H);
        } else {
            copy<R>(line, h, a.H);
            drop<S, R>(a, b, sequence.n, static_cast<const R*>(line), line);
        }
        sum.add(static_cast<const R*>(line));
    }

    // The sums over the rows of the batch: dp, with a norm db, and those of the input's norm.
    void parameters(int64_t n) const {
        const int G = C::gates, gains = a.norm ? G : 0;
        const auto of = [&](void* result, int64_t rows, int64_t row) {
            return static_cast<S*>(result) + (n * rows + row) * a.H;
        };
        for (int k = 0; a.dp && k < C::rows; ++k)
            reduce(n, k, of(a.dp, gains + C::rows, gains + k));
        for (int g = 0; g < gains; ++g) {
            if (a.dp) reduce(n, C::rows + g, of(a.dp, gains + C::rows, g));
            if (a.db) reduce(n, C::rows + G + g, of(a.db, G, g));
        }
        for (int g = 0; a.x_gain && g < G; ++g) {
            if (a.dx_gain) reduce(n, C::rows + 2 * G + g, of(a.dx_gain, G, g));
            if (a.db_ih) reduce(n, C::rows + 3 * G + g, of(a.db_ih, G, g));
        }
    }

    void reduce(int64_t n, int row, S* to) const {
        const int64_t vectors = Panels<R>::vectors(a.H), rows = Shared::sums_rows(a);
        for (int64_t k = team.begin(vectors); k < team.end(vectors); ++k) {
            const Part<R> part(a.H - k * LANES<R>);
            V total = {};
            for (int64_t b = 0; b < a.B; ++b)
                total += load(shared.sums + ((n * a.B + b) * rows + row) * a.H + k * LANES<R>,
                              part);
            store(to + k * LANES<R>, total, part);
        }
    }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
