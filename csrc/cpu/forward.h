// The forward scan.
#pragma once
#include "scan.h"

namespace rnnkit {
namespace RNNKIT_ISA {

template <class S, class C> struct Forward {
    using R = Real<S>;
    using V = Vector<R>;
    static constexpr bool INNER = C::late < C::gates;

    // What the threads of a tile share.
    struct Buffers {
        Array<R> states, fed, r, scales;

        Buffers(const Arguments& a, int64_t rows)
            : states(C::states * rows * a.H), fed(a.d || INNER ? rows * a.H : 0),
              r(a.products ? 0 : rows * (C::gates - a.summed) * a.H), scales(rows * C::gates) {}
    };

    struct Shared {
        Buffers* buffers;
    };

    const Arguments& a;
    const Weights<S, C>& weights;
    Sequence sequence;
    Parameters<R, C> own;
    Rows& tile;
    Buffers& buffers;
    const Team columns;  // those who share the products' columns; alone, all are one's own
    Array<const R*> from;
    Array<R*> to;
    Array<R> inner;

    Forward(const Arguments& a, const Weights<S, C>& weights, int64_t n, Rows& tile,
            Shared&, Buffers& buffers, const Team& columns)
        : a(a), weights(weights), sequence(a, n), own(parameters_of<S, C>(a, n)), tile(tile),
          buffers(buffers), columns(columns), from(tile.count), to(tile.count), inner(a.H) {}

    R* state(int k, int64_t i) const { return buffers.states + (k * tile.count + i) * a.H; }
    R* fed(int64_t i) const { return buffers.fed + i * a.H; }

    // A row of the products; its first gate is the one after those that are added to x.
    R* products(int64_t t, int64_t i) const {
        if (a.summed == C::gates) return nullptr;
        const int64_t row = a.products ? sequence.at(t, tile.rows[i]) : i;
        R* from = a.products ? static_cast<R*>(a.products) : buffers.r.data;
        return from + (row * (C::gates - a.summed) - a.summed) * a.H;
    }

    R* scales(int64_t t, int64_t i) const {
        if (!a.scales) return buffers.scales + i * C::gates;
        return static_cast<R*>(a.scales) + sequence.at(t, tile.rows[i]) * C::gates;
    }

    void run() {
        for (int64_t i = columns.index; i < tile.count; i += columns.size) enter(i);
        columns.wait();
        for (int64_t k = 0; k < a.T; ++k) {
            const int64_t t = sequence.time(k);
            tile.reach(sequence, t);
            multiply(t, 0, a.d);
            if (!INNER && weights.parts() == 2) multiply(t, 1, a.d);
            columns.wait();
            if (INNER) {
                for (int64_t i = columns.index; i < tile.active; i += columns.size)
                    feed_late(t, i);
                columns.wait();
                multiply(t, 1, true);
                columns.wait();
            }
            for (int64_t i = columns.index; i < tile.active; i += columns.size) {
                if (a.norm)
                    normalise_products<S, R>(a, row(t, i).x, products(t, i), scales(t, i),
                                          INNER ? C::late : 0, C::gates);
                advance(t, i);
                prepare(sequence.after(t), i);
            }
            columns.wait();
        }
        for (int64_t i = columns.index; i < tile.count; i += columns.size) leave(i);
    }

    Row<S> row(int64_t t, int64_t i) const {
        return row_of<S>(a, t, tile.rows[i], sequence.n, products(t, i));
    }

    void enter(int64_t i) {
        const int64_t b = tile.rows[i], plane = a.B * a.N * a.H;
        const S* s0 = static_cast<const S*>(a.s0) + (b * a.N + sequence.n) * a.H;
        for (int k = 0; k < C::states; ++k) {
            if (a.s0)
                copy<R>(state(k, i), s0 + k * plane, a.H);
            else
                std::memset(state(k, i), 0, a.H * sizeof(R));
        }
        prepare(sequence.start(b), i);
    }

    // Makes the state ready for step t, if the row has one.
    void prepare(int64_t t, int64_t i) {
        const int64_t b = tile.rows[i];
        if (t < 0 || t >= sequence.length(b)) return;
        if (sequence.fresh(t, b))
            for (int k = 0; k < C::states; ++k) std::memset(state(k, i), 0, a.H * sizeof(R));
        if (a.d) drop<S, R>(a, b, sequence.n, state(0, i), fed(i));
    }

    // The products of one part of the gates.
    void multiply(int64_t t, int part, bool from_fed) {
        const int64_t gate = part ? weights.cut : 0, shift = gate * a.H;
        const bool summed = gate < a.summed;
        const Panels<R> panels = weights.part(sequence.n, part);
        for (int64_t i = 0; i < tile.active; ++i) {
            from[i] = from_fed ? fed(i) : state(0, i);
            // They are added to x only where it is of the arithmetic's type.
            to[i] = summed ? (R*)row(t, i).x + shift : products(t, i) + shift;
        }
        const Init init = summed ? Init::SUM : a.b && !a.norm ? Init::ROW : Init::ZERO;
        multiply_columns<R>(panels, columns, tile.active, from, to, init, own.bias + shift);
    }

    // What the late gates' product is fed.
    void feed_late(int64_t t, int64_t i) {
        const Row<S> at = row(t, i);
        if (a.norm) normalise_products<S, R>(a, at.x, products(t, i), scales(t, i), 0, C::late);
        inner_steps<S, C>(Loading(a), own, at, state(0, i), fed(i));
        if (a.d) drop<S, R>(a, tile.rows[i], sequence.n, fed(i), fed(i));
    }

    void advance(int64_t t, int64_t i) {
        const Row<S> at = row(t, i);
        Operands<S, C> v;
        const Loading how(a);
        R* states[C::states];
        for (int k = 0; k < C::states; ++k) states[k] = state(k, i);
        const auto operands = [&](int64_t j, const Part<R>& part) INLINE_LAMBDA {
            v.load_gates(how, own, at, j, part, 0, C::gates);
            for (int k = 0; k < C::states; ++k) v.s[k] = load(states[k] + j, part);
        };
        Moments<R> moment = {};
        if constexpr (C::normalises) {
            for (int64_t j = 0; j < a.H; j += LANES<R>) {
                const Part<R> part(a.H - j);
                operands(j, part);
                store(inner + j, C::normalised(v.x, v.r, v.s, v.p), part);
            }
            moment = moments<R>(inner, a.H, R(a.eps));
        }
        const int64_t step = sequence.at(t, tile.rows[i]) * a.H, H = a.H;
        const bool activated = a.activated;
        S* results[C::states];
        for (int k = 0; k < C::states; ++k) results[k] = states_of<S>(a, k) + step;
        for (int64_t j = 0; j < H; j += LANES<R>) {
            const Part<R> part(H - j);
            operands(j, part);
            V raw = {}, n = {}, next[C::states];
            if constexpr (C::normalises) {
                raw = load(inner + j, part);
                n = (raw - moment.mean) * moment.scale;
            }
            C::step(v.x, v.r, v.s, v.p, raw, n, next);
            if constexpr (C::activates) {
                V active[C::gates];
                C::activations(v.x, v.r, active);
                for (int g = 0; activated && g < C::gates; ++g)
                    store((R*)at.x + g * H + j, active[g], part);
            }
            for (int k = 0; k < C::states; ++k) {
                if (at.m && k < a.E) {
                    const V share = share_of<S, R>(a, at.m, k, j, part);
                    next[k] = share * v.s[k] + (1 - share) * next[k];
                }
                store(states[k] + j, next[k], part);
                store(results[k] + j, next[k], part);
            }
        }
    }

    // The final states, and zeros past the row's length.
    void leave(int64_t i) {
        const int64_t b = tile.rows[i], plane = a.B * a.N * a.H;
        S* last = static_cast<S*>(a.last) + (b * a.N + sequence.n) * a.H;
        for (int k = 0; k < C::states; ++k)
            for (int64_t j = 0; j < a.H; j += LANES<R>) {
                const Part<R> part(a.H - j);
                store(last + k * plane + j, load(state(k, i) + j, part), part);
            }
        for (int64_t t = sequence.length(b); t < a.T; ++t) {
            const int64_t step = sequence.at(t, b) * a.H;
            for (int k = 0; k < C::states; ++k)
                std::memset(states_of<S>(a, k) + step, 0, a.H * sizeof(S));
            if (a.products)
                std::memset(products(t, i) + a.summed * a.H, 0,
                            (C::gates - a.summed) * a.H * sizeof(R));
            if (a.scales) std::memset(scales(t, i), 0, C::gates * sizeof(R));
        }
    }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
