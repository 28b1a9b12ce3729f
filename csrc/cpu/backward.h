// The backward scan: the gradients of every step's x and products, the last step first.
#pragma once
#include "scan.h"

namespace rnnkit {
namespace RNNKIT_ISA {

template <class S, class C> struct Backward {
    using R = Real<S>;
    using V = Vector<R>;
    static constexpr bool INNER = C::late < C::gates;

    // What the threads of a tile share: the gradient of the states; of the products (first of what
    // the step sees of them); of what a product was fed; and the products, where they were not kept.
    struct Buffers {
        Array<R> ds, dr, dq, r, scales, fed;
        Array<uint8_t> pending;

        Buffers(const Arguments& a, int64_t rows)
            : ds(C::states * rows * a.H), dr(rows * C::gates * a.H), dq(rows * a.H),
              r(products_missing<C>(a) ? rows * C::gates * a.H : 0), scales(rows * C::gates),
              fed(products_missing<C>(a) ? rows * a.H : 0), pending(rows) {}
    };

    // What all tiles share. dr: of the gates from `own_gates` on, whose gradient dx does not hold.
    // fed: what the late product was fed. sums: of each row, the gradients of the step's
    // parameters and, with a norm, of its gain and bias; and of those of the input's norm.
    struct Shared {
        Buffers* buffers;
        const Weights<S, C>* products;
        int own_gates;
        Array<R> dr, fed, sums;

        static constexpr int ROWS = C::rows;
        static int sums_rows(const Arguments& a) {
            return ROWS + (a.norm ? 2 * C::gates : 0) + (a.x_gain ? 2 * C::gates : 0);
        }

        Shared(const Arguments& a, Buffers* buffers, const Weights<S, C>* products)
            : buffers(buffers), products(products),
              own_gates(!a.norm ? C::shared : a.of_sum ? C::gates : 0),
              dr(a.T * a.B * a.N * (C::gates - own_gates) * a.H),
              fed(INNER ? a.T * a.B * a.N * a.H : 0), sums(a.N * a.B * sums_rows(a) * a.H) {
            sums.zero(a.N * a.B * sums_rows(a) * a.H);
        }
    };

    const Arguments& a;
    const Weights<S, C>& weights;
    Sequence sequence;
    Parameters<R, C> own;
    Rows& tile;
    Shared& shared;
    Buffers& buffers;
    const Team columns;
    bool missing;  // whether the products were not kept
    Array<const R*> from;
    Array<R*> to;
    Array<R> raw, normal, gradient;  // of the value that the step normalises
    Array<R> x_row, dx_row;  // of the input's norm
    Array<S> nothing;

    Backward(const Arguments& a, const Weights<S, C>& weights, int64_t n, Rows& tile,
             Shared& shared, Buffers& buffers, const Team& columns)
        : a(a), weights(weights), sequence(a, n), own(parameters_of<S, C>(a, n)), tile(tile), shared(shared),
          buffers(buffers), columns(columns),
          missing(products_missing<C>(a)), from(tile.count), to(tile.count), raw(a.H),
          normal(a.H), gradient(a.H), x_row(a.x_gain ? C::gates * a.H : 0),
          dx_row(a.x_gain ? C::gates * a.H : 0), nothing(a.H) {
        nothing.zero(a.H);
    }

    R* ds(int k, int64_t i) const { return buffers.ds + (k * tile.count + i) * a.H; }
    R* dr(int64_t i) const { return buffers.dr + i * C::gates * a.H; }
    R* dq(int64_t i) const { return buffers.dq + i * a.H; }
    R* fed(int64_t i) const { return buffers.fed + i * a.H; }
    int64_t at(int64_t t, int64_t i) const { return sequence.at(t, tile.rows[i]); }

    R* products(int64_t t, int64_t i) const {
        if (a.summed == C::gates) return nullptr;
        if (!a.products) return buffers.r + i * C::gates * a.H;
        return static_cast<R*>(a.products) + (at(t, i) * (C::gates - a.summed) - a.summed) * a.H;
    }

    R* scales(int64_t t, int64_t i) const {
        if (!a.scales) return buffers.scales + i * C::gates;
        return static_cast<R*>(a.scales) + at(t, i) * C::gates;
    }

    R* sums(int64_t i, int row) const {
        const int64_t b = tile.rows[i];
        return shared.sums
               + ((sequence.n * a.B + b) * Shared::sums_rows(a) + row) * a.H;
    }

    // State k as the row entered step t.
    const S* previous(int k, int64_t t, int64_t i) const {
        const S* found = entering<S>(a, sequence, k, t, tile.rows[i]);
        return found ? found : nothing.data;
    }

    Row<S> row(int64_t t, int64_t i) const {
        return row_of<S>(a, t, tile.rows[i], sequence.n, products(t, i));
    }

    void run() {
        for (int64_t i = columns.index; i < tile.count; i += columns.size) enter(i);
        for (int64_t k = a.T; k-- > 0;) {
            const int64_t t = sequence.time(k);
            tile.reach(sequence, t);
            if (missing) again(t);
            for (int64_t i = columns.index; i < tile.active; i += columns.size) {
                through_step(t, i);
                if (!INNER) before_products(t, i, 0, C::gates);
            }
            if (INNER) {
                for (int64_t i = columns.index; i < tile.active; i += columns.size)
                    before_products(t, i, C::late, C::gates);
                columns.wait();
                multiply(true);
                columns.wait();
                for (int64_t i = columns.index; i < tile.active; i += columns.size) {
                    through_inner(t, i);
                    before_products(t, i, 0, C::late);
                }
            }
            for (int64_t i = columns.index; a.x_gain && i < tile.active; i += columns.size)
                before_projection(t, i);
            columns.wait();
            multiply(false);
            columns.wait();
        }
        for (int64_t i = columns.index; i < tile.count; i += columns.size) leave(i);
    }

    void enter(int64_t i) {
        const int64_t plane = a.B * a.N * a.H;
        const S* dlast = static_cast<const S*>(a.dlast)
                         + (tile.rows[i] * a.N + sequence.n) * a.H;
        for (int k = 0; k < C::states; ++k) {
            if (a.dlast)
                copy<R>(ds(k, i), dlast + k * plane, a.H);
            else
                std::memset(ds(k, i), 0, a.H * sizeof(R));
        }
        buffers.pending[i] = 0;
    }

    // dq = dr @ w of the gates of one product.
    void multiply(bool late) {
        const Panels<R> panels = weights.part(sequence.n, late);
        for (int64_t i = 0; i < tile.active; ++i) {
            from[i] = dr(i) + (late ? C::late * a.H : 0);
            to[i] = dq(i);
        }
        multiply_columns<R>(panels, columns, tile.active, from, to, Init::ZERO, nullptr);
    }

    // The products of step t, as the forward scan computed them.
    void again(int64_t t) {
        for (int late = 0; late < 1 + INNER; ++late) {
            for (int64_t i = columns.index; i < tile.active; i += columns.size) {
                if (late)
                    inner_steps<S, C>(Loading(a), own, row(t, i), previous(0, t, i), fed(i));
                else
                    copy<R>(fed(i), previous(0, t, i), a.H);
                if (a.d) drop<S, R>(a, tile.rows[i], sequence.n, fed(i), fed(i));
            }
            columns.wait();
            const int64_t shift = late ? C::late * a.H : 0;
            const Panels<R> panels = shared.products->part(sequence.n, late);
            for (int64_t i = 0; i < tile.active; ++i) {
                from[i] = fed(i);
                to[i] = products(t, i) + shift;
            }
            const Init init = a.b && !a.norm ? Init::ROW : Init::ZERO;
            multiply_columns<R>(panels, columns, tile.active, from, to, init, own.bias + shift);
            columns.wait();
            if (!a.norm) continue;
            for (int64_t i = columns.index; i < tile.active; i += columns.size)
                normalise_products<S, R>(a, row(t, i).x, products(t, i), scales(t, i),
                                      late ? C::late : 0,
                                      INNER && !late ? C::late : C::gates);
        }
    }

    // The whole gradient that reaches state k of step t: from the step after it and from outside.
    INLINE V arriving(int k, int64_t t, int64_t i, int64_t j, const Part<R>& part) const {
        const void* outside = k == 0 ? a.doutput : a.dcells;
        V total = load(ds(k, i) + j, part);
        if (k == 0 && buffers.pending[i]) total += through_drop(i, j, part);
        if (outside) {
            const int64_t plane = k == 0 ? 0 : (k - 1) * a.T * a.B * a.N * a.H;
            total += load(static_cast<const S*>(outside) + plane + at(t, i) * a.H + j, part);
        }
        return total;
    }

    // The gradient of h through the product that it was fed to.
    INLINE V through_drop(int64_t i, int64_t j, const Part<R>& part) const {
        V v = load(dq(i) + j, part);
        if (a.d)
            v *= load(static_cast<const S*>(a.d) + (tile.rows[i] * a.N + sequence.n) * a.H + j,
                      part);
        return v;
    }

    void through_step(int64_t t, int64_t i) {
        const Row<S> place = row(t, i);
        const S* before[C::states];
        for (int k = 0; k < C::states; ++k) before[k] = previous(k, t, i);
        const bool fresh = sequence.fresh(t, tile.rows[i]);
        const Loading how(a);
        Operands<S, C> v;
        V total[C::states], next[C::states];
        const auto operands = [&](int64_t j, const Part<R>& part) INLINE_LAMBDA {
            v.load_gates(how, own, place, j, part, 0, C::gates);
            for (int k = 0; k < C::states; ++k) {
                v.s[k] = load(before[k] + j, part);
                total[k] = arriving(k, t, i, j, part);
                next[k] = total[k];
                if (place.m && k < a.E)
                    next[k] = (1 - share_of<S, R>(a, place.m, k, j, part)) * total[k];
            }
        };
        if constexpr (C::normalises) {
            for (int64_t j = 0; j < a.H; j += LANES<R>) {
                const Part<R> part(a.H - j);
                operands(j, part);
                store(raw + j, C::normalised(v.x, v.r, v.s, v.p), part);
            }
            const Moments<R> moment = moments<R>(raw, a.H, R(a.eps));
            for (int64_t j = 0; j < a.H; j += LANES<R>) {
                const Part<R> part(a.H - j);
                operands(j, part);
                const V value = load(raw + j, part), n = (value - moment.mean) * moment.scale;
                const V dn = C::normalised_gradient(v.x, v.r, v.s, v.p, value, n, next);
                store(normal + j, n, part);
                store(gradient + j, dn, part);
            }
            normalise_gradient<R>(gradient, normal, moment.scale, a.H);
        }
        S* dx = static_cast<S*>(a.dx) + at(t, i) * C::gates * a.H;
        for (int64_t j = 0; j < a.H; j += LANES<R>) {
            const Part<R> part(a.H - j);
            operands(j, part);
            V value = {}, n = {}, dv = {}, dgates[C::gates], dproducts[C::gates];
            V old[C::states], dp[C::rows + 1];
            if constexpr (C::normalises) {
                value = load(raw + j, part);
                n = load(normal + j, part);
                dv = load(gradient + j, part);
            }
            C::vjp(v.x, v.r, v.s, v.p, value, n, next, dv, dgates, dproducts, old, dp);
            for (int g = 0; g < C::gates; ++g) {
                if (!a.of_sum) store(dx + g * a.H + j, dgates[g], part);
                store(dr(i) + g * a.H + j, dproducts[g], part);
            }
            for (int k = 0; k < C::states; ++k) {
                if (place.m && k < a.E)
                    old[k] += share_of<S, R>(a, place.m, k, j, part) * total[k];
                store(ds(k, i) + j, fresh ? V{} : old[k], part);
            }
            for (int k = 0; k < C::rows; ++k) accumulate(sums(i, k) + j, dp[k], part);
        }
        buffers.pending[i] = !fresh;
    }

    static INLINE void accumulate(R* to, V v, const Part<R>& part) {
        store(to, load(to, part) + v, part);
    }

    // From the gradient of what the late product was fed to that of the early gates.
    void through_inner(int64_t t, int64_t i) {
        const Row<S> place = row(t, i);
        const S* h = previous(0, t, i);
        const bool fresh = sequence.fresh(t, tile.rows[i]);
        S* dx = static_cast<S*>(a.dx) + at(t, i) * C::gates * a.H;
        R* q = shared.fed + at(t, i) * a.H;
        const Loading how(a);
        for (int64_t j = 0; j < a.H; j += LANES<R>) {
            const Part<R> part(a.H - j);
            Operands<S, C> v;
            v.load_gates(how, own, place, j, part, 0, C::late);
            v.s[0] = load(h + j, part);
            V dgates[C::gates], dproducts[C::gates], old[1] = {load(ds(0, i) + j, part)};
            for (int g = 0; g < C::late; ++g)
                dgates[g] = dproducts[g] = load(dr(i) + g * a.H + j, part);
            C::inner_vjp(v.x, v.r, v.s, v.p, through_drop(i, j, part), dgates, dproducts, old);
            for (int g = 0; g < C::late; ++g) {
                store(dx + g * a.H + j, dgates[g], part);
                store(dr(i) + g * a.H + j, dproducts[g], part);
            }
            store(ds(0, i) + j, fresh ? V{} : old[0], part);
            store(q + j, C::inner_step(v.x, v.r, v.s, v.p), part);
        }
        if (a.d) drop<S, R>(a, tile.rows[i], sequence.n, q, q);
    }

    // From the gradient of r to that of the products of some gates, and what the sums over all
    // steps will read of it.
    void before_products(int64_t t, int64_t i, int first_gate, int last_gate) {
        R* d = dr(i);
        if (a.norm) {
            const R* n = products(t, i);
            const R* scale = scales(t, i);
            for (int g = first_gate; g < last_gate; ++g)
                for (int64_t j = 0; j < a.H; j += LANES<R>) {
                    const Part<R> part(a.H - j);
                    const int64_t here = g * a.H + j;
                    const V v = load(d + here, part);
                    accumulate(sums(i, C::rows + g) + j, v * load(n + here, part), part);
                    accumulate(sums(i, C::rows + C::gates + g) + j, v, part);
                    store(d + here, v * load(own.gain + here, part), part);
                }
            normalise_gates_gradient(a, d, n, scale, first_gate, last_gate);
        }
        const int own_gates = shared.own_gates;
        R* kept = shared.dr + at(t, i) * (C::gates - own_gates) * a.H;
        S* dx = static_cast<S*>(a.dx) + at(t, i) * C::gates * a.H;
        for (int g = first_gate; g < last_gate; ++g) {
            if (g >= own_gates)
                copy<R>(kept + (g - own_gates) * a.H, d + g * a.H, a.H);
            else if (a.of_sum)
                copy<R>(dx + g * a.H, d + g * a.H, a.H);
        }
    }

    // From the gradient of x to that of the input's projection, which was normalised to n.
    void before_projection(int64_t t, int64_t i) {
        const int64_t width = C::gates * a.H, place = at(t, i);
        const S* n = static_cast<const S*>(a.x) + place * width;
        S* dx = static_cast<S*>(a.dx) + place * width;
        const int first = C::rows + 2 * C::gates;
        for (int64_t g = 0; g < C::gates; ++g)
            for (int64_t j = 0; j < a.H; j += LANES<R>) {
                const Part<R> part(a.H - j);
                const int64_t here = g * a.H + j;
                const V d = load(dx + here, part), value = load(n + here, part);
                accumulate(sums(i, first + g) + j, d * value, part);
                accumulate(sums(i, first + C::gates + g) + j, d, part);
                store(x_row + here, value, part);
                store(dx_row + here, d * load(own.x_gain + here, part), part);
            }
        normalise_gates_gradient<R>(a, dx_row, x_row,
                                    static_cast<const R*>(a.x_scales) + place * C::gates, 0,
                                    C::gates);
        copy<R>(dx, dx_row.data, width);
    }

    // The gradient of the initial states, and zeros past the row's length.
    void leave(int64_t i) {
        const int64_t b = tile.rows[i], plane = a.B * a.N * a.H;
        S* ds0 = static_cast<S*>(a.ds0) + (b * a.N + sequence.n) * a.H;
        for (int k = 0; a.ds0 && k < C::states; ++k)
            for (int64_t j = 0; j < a.H; j += LANES<R>) {
                const Part<R> part(a.H - j);
                V v = load(ds(k, i) + j, part);
                if (k == 0 && buffers.pending[i]) v += through_drop(i, j, part);
                store(ds0 + k * plane + j, v, part);
            }
        for (int64_t t = sequence.length(b); t < a.T; ++t)
            std::memset(static_cast<S*>(a.dx) + sequence.at(t, b) * C::gates * a.H, 0,
                        C::gates * a.H * sizeof(S));
    }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
