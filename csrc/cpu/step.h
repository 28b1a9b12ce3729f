// One step of one layer for few rows, where time is latency: nothing is packed, since every weight
// is read once; each is read in its own layout, along the sum.
#pragma once
#include "scan.h"

namespace rnnkit {
namespace RNNKIT_ISA {

// c[n] = bias[n] + w[n] . a for `count` rows of w, at most as many as a vector has lanes. A sum's
// order is the same for every row, alone or among others.
template <class S, int ROWS>
INLINE void partial_dots(const S* w, int64_t K, const Real<S>* a, Real<S> (*sums)[LANES<Real<S>>]) {
    using R = Real<S>;
    Vector<R> rows[ROWS] = {};
    const auto add = [&](int64_t k, const Part<R>& part) {
        const Vector<R> value = load(a + k, part);
        for (int i = 0; i < ROWS; ++i) rows[i] += load(w + i * K + k, part) * value;
    };
    const Part<R> whole(LANES<R>);
    int64_t k = 0;
    for (; k + LANES<R> <= K; k += LANES<R>) add(k, whole);
    if (k < K) add(k, Part<R>(K - k));
    for (int i = 0; i < ROWS; ++i) store_whole(sums[i], rows[i]);
}

template <class S>
inline void dot_rows(const S* w, int64_t count, int64_t K, const Real<S>* a, Real<S>* c,
                     const S* bias) {
    using R = Real<S>;
    constexpr int ROWS = 4;
    R sums[LANES<R>][LANES<R>];
    int64_t i = 0;
    for (; i + ROWS <= count; i += ROWS) partial_dots<S, ROWS>(w + i * K, K, a, sums + i);
    for (; i < count; ++i) partial_dots<S, 1>(w + i * K, K, a, sums + i);
    for (i = 0; i < count; ++i) {
        R total = bias ? Panels<R>::real(bias[i]) : R(0);
        for (int lane = 0; lane < LANES<R>; ++lane) total += sums[i][lane];
        c[i] = total;
    }
}

// c[b][n] = bias[n] + w[n] . a[b] for the rows [begin, end) of w (N, K).
template <class S>
void dots(const S* w, int64_t begin, int64_t end, int64_t K, int64_t B, const Real<S>* a,
          int64_t a_stride, Real<S>* c, int64_t c_stride, const S* bias) {
    constexpr int64_t MOST = LANES<Real<S>>;
    for (int64_t n = begin; n < end; n += MOST) {
        const int64_t count = end - n < MOST ? end - n : MOST;
        for (int64_t b = 0; b < B; ++b)
            dot_rows<S>(w + n * K, count, K, a + b * a_stride, c + b * c_stride + n,
                        bias ? bias + n : nullptr);
    }
}

// The values in the type of the arithmetic: themselves, or a copy.
template <class S> struct Wide {
    using R = Real<S>;
    Array<R> copied;
    const R* data;

    Wide(const void* from, int64_t count) : copied(sizeof(S) == sizeof(R) ? 0 : count) {
        if constexpr (sizeof(S) == sizeof(R)) {
            data = static_cast<const R*>(from);
        } else {
            copy<R>(copied.data, static_cast<const S*>(from), count);
            data = copied;
        }
    }
};

template <class S, class C> void step(const Arguments& a, const Pool& pool) {
    using R = Real<S>;
    using V = Vector<R>;
    const int64_t B = a.B, H = a.H, I = a.I, width = C::gates * H, plane = B * H;
    const Array<R> x(2 * B * width), zero(a.s0 ? 0 : plane);
    R* const r = x + B * width;
    zero.zero(a.s0 ? 0 : plane);
    const Wide<S> input(a.input, B * I), old(a.s0, a.s0 ? plane : 0);
    const R* const h = a.s0 ? old.data : zero.data;
    const S* const w = static_cast<const S*>(a.w);
    const S* const b_hh = static_cast<const S*>(a.b);
    const auto products = [&](const Team& team) {
        const int64_t begin = team.begin(width), end = team.end(width), early = C::late * H;
        dots(static_cast<const S*>(a.w_ih), begin, end, I, B, input.data, I, x.data, width,
             static_cast<const S*>(a.b_ih));
        dots(w, begin < early ? begin : early, end < early ? end : early, H, B, h, H, r, width,
             b_hh);
    };
    // Less than this takes no longer than to wake another thread.
    run(pool, width * (H + I) * B < (1 << 15) ? 1 : pool.threads, products);

    Loading how(a);
    how.x_g = H;
    // The biases are in x and r already.
    const Parameters<R, C> own(a, false);
    if (C::rows > 0) copy<R>(own.own.data, static_cast<const S*>(a.p), C::rows * H);
    const auto place = [&](int64_t b) {
        return Row<R>{x + b * width, r + b * width, nullptr};
    };
    if constexpr (C::late < C::gates) {
        const Array<R> q(plane);
        for (int64_t b = 0; b < B; ++b)
            inner_steps<R, C>(how, own, place(b), h + b * H, q + b * H);
        dots(w, C::late * H, width, H, B, static_cast<const R*>(q.data), H, r, width, b_hh);
    }
    for (int64_t at = 0; at < B * H;) {
        const int64_t b = at / H, j = at % H;
        const Part<R> part(H - j);
        at += part.count;
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
    }
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
