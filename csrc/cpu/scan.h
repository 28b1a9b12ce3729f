// What the forward and the backward scan share: a cell's operands, and the products of a step.
#pragma once
#include "math.h"
#include "norm.h"
#include "product.h"
#include "sequence.h"

namespace rnnkit {
namespace RNNKIT_ISA {

// The weights of every group, packed for r = q @ w.T or for dq = dr @ w, in two parts: those of the
// gates before and from `cut` on.
template <class S, class C> struct Weights {
    using R = Real<S>;
    const Arguments& a;
    bool forward;
    int64_t cut, sizes[2];
    Array<R> data;

    Weights(const Arguments& a, bool forward, int64_t cut, bool needed = true)
        : a(a), forward(forward), cut(cut), sizes{size(cut), size(C::gates - cut)},
          data(needed ? a.N * (sizes[0] + sizes[1]) : 0) {}

    int64_t size(int64_t gates) const {
        if (gates == 0) return 0;
        const int64_t rows = gates * a.H;
        return forward ? Panels<R>::size(a.H, rows) : Panels<R>::size(rows, a.H);
    }

    int parts() const { return 1 + (cut < C::gates); }

    Panels<R> part(int64_t n, int k) const {
        const int64_t rows = (k ? C::gates - cut : cut) * a.H;
        R* from = data + n * (sizes[0] + sizes[1]) + (k ? sizes[0] : 0);
        return forward ? Panels<R>{from, a.H, rows} : Panels<R>{from, rows, a.H};
    }

    void pack(const Team& team) const {
        for (int64_t n = 0; n < a.N; ++n)
            for (int k = 0; k < parts(); ++k) {
                const Panels<R> panels = part(n, k);
                const S* from = static_cast<const S*>(a.w)
                                + (n * C::gates + (k ? cut : 0)) * a.H * a.H;
                const int64_t count = panels.count();
                for (int64_t panel = team.begin(count); panel < team.end(count); ++panel)
                    panels.pack(panel, from, forward ? 1 : a.H, forward ? a.H : 1);
            }
    }
};

// A group's small parameters in the type of the arithmetic: bias, gain of the norm, the cell's own,
// and gain and bias of the norm of the input's part.
template <class R, class C> struct Parameters {
    Array<R> bias, gain, own, x_gain, x_bias;

    Parameters(const Arguments& a, bool has_bias)
        : bias(has_bias || a.norm ? C::gates * a.H : 0), gain(a.norm ? C::gates * a.H : 0),
          own(C::rows * a.H), x_gain(a.x_gain ? C::gates * a.H : 0),
          x_bias(a.x_gain ? C::gates * a.H : 0) {}
};

template <class S, class C>
inline Parameters<Real<S>, C> parameters_of(const Arguments& a, int64_t n) {
    using R = Real<S>;
    const int64_t width = C::gates * a.H, gains = a.norm ? width : 0, rows = C::rows * a.H;
    Parameters<R, C> found(a, a.b != nullptr);
    const auto take = [&](R* to, const void* from, int64_t stride, int64_t first, int64_t count) {
        if (from)
            copy<R>(to, static_cast<const S*>(from) + n * stride + first, count);
        else if (to)
            std::memset(to, 0, count * sizeof(R));
    };
    take(found.bias, a.b, width, 0, width);
    take(found.gain, gains ? a.p : nullptr, gains + rows, 0, gains);
    take(found.own, rows ? a.p : nullptr, gains + rows, gains, rows);
    take(found.x_gain, a.x_gain, width, 0, width);
    take(found.x_bias, a.x_gain ? a.b_ih : nullptr, width, 0, width);
    return found;
}

// Whether backward must compute products again: neither kept nor all added to x.
template <class C> inline bool products_missing(const Arguments& a) {
    return !a.products && a.summed < C::gates;
}

// Where the operands of one row at one step are.
template <class S> struct Row {
    const S* x;
    const Real<S>* r;  // what the products give; of a norm, its n
    const void* m;
};

// What decides how operands are loaded, by value: the loops over units must not read it again.
struct Loading {
    int64_t H, x_g, summed;
    bool norm, of_sum, x_norm;

    explicit Loading(const Arguments& a)
        : H(a.H), x_g(a.x_g), summed(a.summed), norm(a.norm), of_sum(a.norm && a.of_sum),
          x_norm(a.x_gain) {}
};

// The operands of some units.
template <class S, class C> struct Operands {
    using R = Real<S>;
    using V = Vector<R>;
    V x[C::gates], r[C::gates], s[C::states], p[C::rows + 1];

    // Gates first to last; the states are the caller's to load.
    INLINE void load_gates(const Loading& how, const Parameters<R, C>& own, const Row<S>& row,
                           int64_t j, const Part<R>& part, int first_gate, int last_gate) {
        for (int g = first_gate; g < last_gate; ++g) {
            const int64_t at = g * how.H + j;
            x[g] = how.of_sum ? V{} : load(row.x + g * how.x_g + j, part);
            if (how.x_norm) x[g] = x[g] * load(own.x_gain + at, part) + load(own.x_bias + at, part);
            r[g] = g < how.summed ? V{} : load(row.r + at, part);
            if (how.norm) r[g] = r[g] * load(own.gain + at, part) + load(own.bias + at, part);
        }
        for (int k = 0; k < C::rows; ++k) p[k] = load(own.own + k * how.H + j, part);
    }
};

template <class S>
inline Row<S> row_of(const Arguments& a, int64_t t, int64_t b, int64_t n, const Real<S>* r) {
    const int64_t m_at = t * a.m_t + b * a.m_b + n * a.m_n;
    const char* m = static_cast<const char*>(a.m);
    return {static_cast<const S*>(a.x) + t * a.x_t + b * a.x_b + n * a.x_n, r,
            m ? m + m_at * (a.m_bytes ? 1 : int64_t(sizeof(S))) : nullptr};
}

// Every step of state k: h is the output, the others are the cells.
template <class S> inline S* states_of(const Arguments& a, int k) {
    if (k == 0) return static_cast<S*>(a.output);
    return static_cast<S*>(a.cells) + (k - 1) * a.T * a.B * a.N * a.H;
}

// State k as a row entered step t; null for zero.
template <class S>
inline const S* entering(const Arguments& a, const Sequence& sequence, int k, int64_t t, int64_t b) {
    if (sequence.fresh(t, b)) return nullptr;
    if (t != sequence.start(b))
        return states_of<S>(a, k) + sequence.at(sequence.back ? t + 1 : t - 1, b) * a.H;
    if (!a.s0) return nullptr;
    return static_cast<const S*>(a.s0) + ((k * a.B + b) * a.N + sequence.n) * a.H;
}

// The share of the old value that stays, of state k.
template <class S, class R>
inline Vector<R> share_of(const Arguments& a, const void* m, int k, int64_t j,
                          const Part<R>& part) {
    if (a.m_bytes) return load(static_cast<const uint8_t*>(m) + k * a.m_e + j, part);
    return load(static_cast<const S*>(m) + k * a.m_e + j, part);
}

// Normalises some gates of a row in place: each, or all of them together.
template <class R>
inline void normalise_gates(const Arguments& a, R* v, R* scales, int first_gate, int last_gate) {
    const int64_t H = a.H;
    if (a.norm == 1) {
        for (int g = first_gate; g < last_gate; ++g)
            scales[g] = normalise(v + g * H, H, R(a.eps));
        return;
    }
    const R scale = normalise(v + first_gate * H, (last_gate - first_gate) * H, R(a.eps));
    for (int g = first_gate; g < last_gate; ++g) scales[g] = scale;
}

template <class R>
inline void normalise_gates_gradient(const Arguments& a, R* dn, const R* n, const R* scales,
                                     int first_gate, int last_gate) {
    const int64_t H = a.H, start = first_gate * H;
    if (a.norm == 1)
        for (int g = first_gate; g < last_gate; ++g)
            normalise_gradient(dn + g * H, n + g * H, scales[g], H);
    else
        normalise_gradient(dn + start, n + start, scales[first_gate],
                           (last_gate - first_gate) * H);
}

// The same of a row of products, to which a norm of the sum adds x.
template <class S, class R>
inline void normalise_products(const Arguments& a, const S* x, R* r, R* scales, int first_gate,
                               int last_gate) {
    const int64_t H = a.H;
    for (int g = first_gate; a.of_sum && g < last_gate; ++g)
        for (int64_t j = 0; j < H; j += LANES<R>) {
            const Part<R> part(H - j);
            store(r + g * H + j, load(r + g * H + j, part) + load(x + g * a.x_g + j, part), part);
        }
    normalise_gates(a, r, scales, first_gate, last_gate);
}

// Walks through the sequences of this thread: Walker(a, weights, n, tile, buffers, team).run().
template <class Walker, class S, class C>
inline void walk(const Arguments& a, const Weights<S, C>& weights, const Sharing& sharing,
                 const Team& team, typename Walker::Shared& shared) {
    const bool groups = sharing.split == Split::GROUPS;
    const bool by_rows = sharing.split == Split::ROWS;
    const bool together = sharing.split == Split::COLUMNS;
    const int64_t first = by_rows ? team.index : 0, stride = by_rows ? team.size : 1;
    const int64_t count = (a.B - first + stride - 1) / stride;
    const int64_t tiles = together ? 1 : (count + MOST_TILE_ROWS - 1) / MOST_TILE_ROWS;
    for (int64_t n = groups ? team.index : 0; n < a.N; n += groups ? team.size : 1)
        for (int64_t k = 0; k < tiles; ++k) {
            const int64_t begin = count * k / tiles, end = count * (k + 1) / tiles;
            Rows tile(end - begin);
            for (int64_t i = begin; i < end; ++i)
                tile.rows[tile.count++] = Sequence(a, n).row(first + i * stride);
            if (together) {
                Walker(a, weights, n, tile, shared, *shared.buffers, team).run();
            } else {
                typename Walker::Buffers buffers(a, tile.count);
                Walker(a, weights, n, tile, shared, buffers, Team{0, 1, nullptr}).run();
            }
        }
}

// This thread's columns of to[i] = init + from[i] @ weights, for the first rows.
template <class R>
inline void multiply_columns(const Panels<R>& weights, const Team& columns, int64_t rows,
                             const Array<const R*>& from, const Array<R*>& to, Init init,
                             const R* row) {
    const int64_t count = weights.count();
    product(weights, columns.begin(count), columns.end(count), rows,
            static_cast<const R* const*>(from.data), 1, static_cast<R* const*>(to.data), init, row);
}

// What the late gates' product is fed by a row with state h.
template <class S, class C, class State>
inline void inner_steps(const Loading& how, const Parameters<Real<S>, C>& own, const Row<S>& row,
                        const State* h, Real<S>* q) {
    using R = Real<S>;
    for (int64_t j = 0; j < how.H; j += LANES<R>) {
        const Part<R> part(how.H - j);
        Operands<S, C> v;
        v.load_gates(how, own, row, j, part, 0, C::late);
        v.s[0] = load(h + j, part);
        store(q + j, C::inner_step(v.x, v.r, v.s, v.p), part);
    }
}

// q * d, what a product is fed under recurrent dropout.
template <class S, class R>
inline void drop(const Arguments& a, int64_t b, int64_t n, const R* q, R* fed) {
    const S* d = static_cast<const S*>(a.d) + (b * a.N + n) * a.H;
    for (int64_t j = 0; j < a.H; j += LANES<R>) {
        const Part<R> part(a.H - j);
        store(fed + j, load(q + j, part) * load(d + j, part), part);
    }
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
