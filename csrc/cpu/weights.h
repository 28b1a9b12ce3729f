// The gradients that are sums over all steps and rows: of the weights, the biases and the cell's
// parameters. Each is summed in one fixed order, whoever computes it.
#pragma once
#include "backward.h"

namespace rnnkit {
namespace RNNKIT_ISA {

template <class S, class C> struct WeightGradients {
    using R = Real<S>;
    using V = Vector<R>;
    using Shared = typename Backward<S, C>::Shared;
    // Steps of one product: its packed operands stay in the nearest caches.
    static constexpr int64_t CHUNK = 96;

    const Arguments& a;
    const Shared& shared;
    const Team& team;

    void run() const {
        for (int64_t n = 0; n < a.N; ++n) {
            gates(n, 0, C::late, false);
            if (C::late < C::gates) gates(n, C::late, C::gates, true);
            parameters(n);
        }
    }

    // dw and db of some gates; the columns are this thread's share of them.
    void gates(int64_t n, int first_gate, int last_gate, bool late) const {
        const int64_t H = a.H, all = (last_gate - first_gate) * H;
        const int64_t begin = first_gate * H + team.begin(all);
        const int64_t end = first_gate * H + team.end(all), count = end - begin;
        if (count == 0) return;
        const Sequence sequence(a, n);
        const Array<R> q(Panels<R>::size(CHUNK, H)), d(CHUNK * count), line(H), total(count);
        const Array<R> dw(sizeof(S) == sizeof(R) ? 0 : count * H);
        const Array<const R*> from(count);
        const Array<R*> to(count);
        S* result = static_cast<S*>(a.dw) + (n * C::gates * H + begin) * H;
        for (int64_t i = 0; i < count; ++i) {
            from[i] = d + i;
            to[i] = sizeof(S) == sizeof(R) ? reinterpret_cast<R*>(result) + i * H : dw + i * H;
        }
        total.zero(count);
        int64_t filled = 0;
        bool first = true;
        const auto flush = [&] {
            const Panels<R> panels = {q, filled, H, CHUNK};
            product(panels, 0, panels.count(), count, static_cast<const R* const*>(from.data),
                    count, static_cast<R* const*>(to.data), first ? Init::ZERO : Init::SUM,
                    static_cast<const R*>(nullptr));
            first = false;
            filled = 0;
        };
        for (int64_t t = 0; t < a.T; ++t)
            for (int64_t b = 0; b < a.B; ++b) {
                if (t >= sequence.length(b)) continue;
                const int64_t at = sequence.at(t, b);
                gather(at, begin, end, d + filled * count, total);
                if (late)
                    spread(shared.fed + at * H, q, filled);
                else
                    spread_state(sequence, t, b, line, q, filled);
                if (++filled == CHUNK) flush();
            }
        if (filled > 0 || first) flush();
        if (sizeof(S) != sizeof(R)) copy<R>(result, dw.data, count * H);
        if (!a.norm)
            copy<R>(static_cast<S*>(a.db) + n * C::gates * H + begin, total.data, count);
    }

    // One row of the products' gradient, and its sum over all rows.
    void gather(int64_t at, int64_t begin, int64_t end, R* to, R* total) const {
        const int64_t H = a.H, kept = shared.own_gates * H;
        const S* dx = static_cast<const S*>(a.dx) + at * C::gates * H;
        const R* dr = shared.dr + at * (C::gates * H - kept) - kept;
        const int64_t border = begin > kept ? begin : end < kept ? end : kept;
        const auto move = [&](auto* from, int64_t first, int64_t last) {
            for (int64_t j = first; j < last; j += LANES<R>) {
                const Part<R> part(last - j);
                const V v = load(from + j, part);
                store(to + j - begin, v, part);
                R* sum = total + j - begin;
                store(sum, load(sum, part) + v, part);
            }
        };
        move(dx, begin, border);
        move(dr, border, end);
    }

    // h as step t was entered with it, times d.
    void spread_state(const Sequence& sequence, int64_t t, int64_t b, R* line, R* q,
                      int64_t k) const {
        const S* h = entering<S>(a, sequence, 0, t, b);
        if (h == nullptr)
            std::memset(line, 0, a.H * sizeof(R));
        else
            copy<R>(line, h, a.H);
        if (a.d) drop<S, R>(a, b, sequence.n, static_cast<const R*>(line), line);
        spread(line, q, k);
    }

    // Puts a row into the panels of a chunk, of which it is row k.
    void spread(const R* row, R* q, int64_t k) const {
        const Panels<R> panels = {q, CHUNK, a.H};
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
            const int64_t columns = panels.columns(panel);
            const int64_t width = Panels<R>::vectors(columns) * LANES<R>;
            for (int64_t j = 0; j < width; j += LANES<R>)
                store_whole(panels.at(panel) + k * width + j,
                            load(row + panel * PANEL<R> + j, Part<R>(columns - j)));
        }
    }

    // The sums over the rows of the batch: dp, and with a norm db.
    void parameters(int64_t n) const {
        const int gains = a.norm ? C::gates : 0;
        S* dp = static_cast<S*>(a.dp) + n * (gains + C::rows) * a.H;
        for (int k = 0; k < C::rows; ++k) reduce(n, k, dp + (gains + k) * a.H);
        for (int g = 0; g < gains; ++g) {
            reduce(n, C::rows + g, dp + g * a.H);
            reduce(n, C::rows + C::gates + g, static_cast<S*>(a.db) + (n * C::gates + g) * a.H);
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

template <class S, class C> void scan_backward(const Arguments& a, const Pool& pool) {
    const Sharing sharing = share(a, C::gates, sizeof(Real<S>), pool);
    const Weights<S, C> weights(a, false), again(a, true, !a.products);
    typename Backward<S, C>::Buffers buffers(a, sharing.split == Split::COLUMNS ? a.B : 0);
    typename Backward<S, C>::Shared shared(a, &buffers, &again);
    const auto job = [&](const Team& team) {
        weights.pack(team);
        if (!a.products) again.pack(team);
        team.wait();
        walk<Backward<S, C>>(a, weights, sharing, team, shared);
        team.wait();
        WeightGradients<S, C>{a, shared, team}.run();
    };
    run(pool, sharing.threads, job);
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
