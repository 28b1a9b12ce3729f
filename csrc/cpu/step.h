// One step of one layer for few rows, where time is latency: nothing is packed, since every weight
// is read once; each is read in its own layout, along the sum.
#pragma once
#include "scan.h"

namespace rnnkit {
namespace RNNKIT_ISA {

// c[b][n] = bias[n] + w[n] . a[b] for some rows n of w (N, K). The sum's order is the same for
// every row b, alone or among others.
template <class S, int ROWS, int BATCH>
inline void dot(const S* w, int64_t K, const Real<S>* a, int64_t a_stride, Real<S>* c,
                int64_t c_stride, const S* bias) {
    using R = Real<S>;
    using V = Vector<R>;
    V sums[ROWS][BATCH] = {};
    const auto add = [&](int64_t k, const Part<R>& part) {
        V row[BATCH];
        for (int b = 0; b < BATCH; ++b) row[b] = load(a + b * a_stride + k, part);
        for (int n = 0; n < ROWS; ++n) {
            const V weights = load(w + n * K + k, part);
            for (int b = 0; b < BATCH; ++b) sums[n][b] += weights * row[b];
        }
    };
    const Part<R> whole(LANES<R>);
    int64_t k = 0;
    for (; k + LANES<R> <= K; k += LANES<R>) add(k, whole);
    if (k < K) add(k, Part<R>(K - k));
    for (int n = 0; n < ROWS; ++n)
        for (int b = 0; b < BATCH; ++b) {
            const R start = bias ? Panels<R>::real(bias[n]) : R(0);
            c[b * c_stride + n] = start + sum<R>(sums[n][b]);
        }
}

template <class S>
void dots(const S* w, int64_t begin, int64_t end, int64_t K, int64_t B, const Real<S>* a,
          int64_t a_stride, Real<S>* c, int64_t c_stride, const S* bias) {
    constexpr int ROWS = 4;
    for (int64_t n = begin; n < end;) {
        const S* const row = w + n * K;
        const S* const start = bias ? bias + n : nullptr;
        const bool whole = n + ROWS <= end;
        int64_t b = 0;
        for (; whole && b + 2 <= B; b += 2)
            dot<S, ROWS, 2>(row, K, a + b * a_stride, a_stride, c + b * c_stride + n, c_stride,
                            start);
        for (; b < B; ++b) {
            if (whole)
                dot<S, ROWS, 1>(row, K, a + b * a_stride, a_stride, c + b * c_stride + n,
                                c_stride, start);
            else
                dot<S, 1, 1>(row, K, a + b * a_stride, a_stride, c + b * c_stride + n, c_stride,
                             start);
        }
        n += whole ? ROWS : 1;
    }
}

template <class S, class C> void step(const Arguments& a, const Pool& pool) {
    using R = Real<S>;
    using V = Vector<R>;
    const int64_t B = a.B, H = a.H, I = a.I, width = C::gates * H, plane = B * H;
    // What follows reads x from scratch in the arithmetic's own type.
    const Array<R> input(B * I), h(B * H), x(B * width), r(B * width);
    const Array<R> other((C::states - 1) * plane);
    const S* const w = static_cast<const S*>(a.w);
    const S* const b_hh = static_cast<const S*>(a.b);
    copy<R>(input.data, static_cast<const S*>(a.input), B * I);
    if (a.s0)
        copy<R>(h.data, static_cast<const S*>(a.s0), plane);
    else
        h.zero(plane);
    const int64_t threads = width * (H + I) * B < (1 << 19) ? 1 : pool.threads;
    const auto products = [&](const Team& team) {
        const int64_t begin = team.begin(width), end = team.end(width), early = C::late * H;
        dots(static_cast<const S*>(a.w_ih), begin, end, I, B, static_cast<const R*>(input.data), I,
             x.data, width, static_cast<const S*>(a.b_ih));
        dots(w, begin < early ? begin : early, end < early ? end : early, H, B,
             static_cast<const R*>(h.data), H, r.data, width, b_hh);
    };
    run(pool, threads, products);

    Loading how(a);
    how.x_g = H;
    const Parameters<R, C> own(a, static_cast<const S*>(nullptr), static_cast<const S*>(a.p));
    const auto each = [&](auto&& function) {
        for (int64_t b = 0; b < B; ++b)
            for (int64_t j = 0; j < H; j += LANES<R>) function(b, j, Part<R>(H - j));
    };
    const auto place = [&](int64_t b) {
        return Row<R>{x + b * width, r + b * width, nullptr};
    };
    if constexpr (C::late < C::gates) {
        const Array<R> q(plane);
        each([&](int64_t b, int64_t j, const Part<R>& part) {
            Operands<R, C> v;
            v.load_gates(how, own, place(b), j, part, 0, C::late);
            v.s[0] = load(h + b * H + j, part);
            store(q + b * H + j, C::inner_step(v.x, v.r, v.s, v.p), part);
        });
        dots(w, C::late * H, width, H, B, static_cast<const R*>(q.data), H, r.data, width, b_hh);
    }
    each([&](int64_t b, int64_t j, const Part<R>& part) {
        Operands<R, C> v;
        v.load_gates(how, own, place(b), j, part, 0, C::gates);
        v.s[0] = load(h + b * H + j, part);
        for (int k = 1; k < C::states; ++k)
            v.s[k] = a.s0 ? load(static_cast<const S*>(a.cells) + b * H + j, part) : V{};
        V next[C::states];
        C::step(v.x, v.r, v.s, v.p, V{}, V{}, next);
        store(static_cast<S*>(a.output) + b * H + j, next[0], part);
        for (int k = 1; k < C::states; ++k)
            store(static_cast<S*>(a.last) + b * H + j, next[k], part);
    });
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
