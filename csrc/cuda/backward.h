// The backward scan by a block: the gradients of every step's x and r, the last step first.
//
// What blocks hand over are the products' gradients and, where there is a norm, sums of its own, in
// stages as in forward.h.
//
// A step that normalises needs its norm again, which depends on nothing but saved states. So its
// sums are handed over a step early, with another round. Their buffer is free by then: in the step
// before, every block arrived for its second round after it had read them.
#pragma once
#include "block.h"

namespace rnnkit {

template <class Kind, class C, int UNIT_TILES, Via VIA> struct Backward {
    using Block = rnnkit::Block<Kind, C, UNIT_TILES, true, VIA>;
    using Early = typename Block::Early;
    using Last = typename Block::Last;
    using Element = typename Block::Element;
    using Unit = typename Block::Unit;
    using Behind = typename Unit::Behind;
    using Within = typename Unit::Within;
    static constexpr int UNITS = Block::UNITS;
    // Places among a row's partials.
    static constexpr int VALUE = C::gates, GRADIENT = C::gates + 1;

    const Arguments& a;
    Block block;
    // What a step reads, where threads take turns.
    typename Unit::template BehindOf<typename Block::S> coming;
    typename Unit::Found found = {};

    DEVICE Backward(const Arguments& a, const Form& form, const Layout& layout)
        : a(a), block(a, form, layout) {}

    // Of the k-th step from the last.
    DEVICE int time(int k) const { return block.clock.time(int(a.T) - 1 - k); }

    DEVICE void run() {
        block.round([&](int c) { begin(c); });
        for (int k = 0; k <= int(a.T); ++k) {
            block.begin_step(k);
            const auto rest = [&](int c) { store(k, c); };
            block.round([&](int c) { multiply(k, c); }, rest);
            if (k == int(a.T)) return;
            if constexpr (C::normalises) block.round([&](int c) { through_norm_within(k, c); }, rest);
            if constexpr (NORM<C>) block.round([&](int c) { through_norm<Last>(k, c); });
            if constexpr (Block::INNER) block.round([&](int c) { through_inner(k, c); }, rest);
            if constexpr (Block::INNER && NORM<C>)
                block.round([&](int c) { through_norm<Early>(k, c); });
        }
    }

    DEVICE void store(int k, int c) {
        block.unit(block.element(c)).store(time(k), found);
        found.last = 0;
    }

    DEVICE void begin(int c) {
        const Element at = block.element(c);
        if (at.idle()) return;
        const Unit u = block.unit(at);
        float ds[C::states];
        for (int k = 0; k < C::states; ++k) ds[k] = u.final(k);
        block.set(at, ds);
        for (int k = 0; k < Block::SUMMED; ++k) block.summed(at, k) = 0;
        if constexpr (C::normalises) normalise(0, at, u);
        if (Block::TURNS > 1) prepare(0, u);
    }

    DEVICE void prepare(int k, const Unit& u) {
        if (k < int(a.T)) coming = u.load_behind(time(k), -block.clock.next(k));
    }

    // Of those whose turn comes next.
    DEVICE void prepare_next(int k, const Element& at) {
        if (Block::TURNS > 1 && at.next()) prepare(k + 1, block.unit({at.unit, 0, at.chunk}));
    }

    DEVICE auto read(int k, const Unit& u, int onward) const {
        if constexpr (Block::TURNS > 1) return coming;
        else return u.load_behind(time(k), onward);
    }

    // The gradient of the initial states, and this row's part of that of the parameters.
    DEVICE void end(const Element& at, const Unit& u, const float (&ds)[C::states]) {
        if (!u.at.exists) return;
        for (int k = 0; k < C::states; ++k) u.put(a.ds0, u.state(k), ds[k]);
        for (int k = 0; k < Block::SUMMED; ++k)
            static_cast<float*>(a.dp)[((u.at.b * a.N + u.at.n) * C::rows + k) * a.H + u.at.j]
                = block.summed(at, k);
    }

    // ds of the states that enter the step after the k-th from the last, with the products' part.
    DEVICE void collect(int k, const Element& at, const Unit& u, float (&ds)[C::states]) {
        block.get(at, ds);
        if (k == 0 || !u.at.exists || block.clock.flags(time(k - 1), u.at.b).fresh()) return;
        float dq[1];
        block.template products<Early>(at, dq);
        ds[0] += u.dropped(dq[0]);
    }

    // From the products' gradient to that of the states, and on.
    DEVICE void multiply(int k, int c) {
        const Element at = block.element(c);
        const Unit u = block.unit(at);
        float value = 0;
        if constexpr (C::normalises) {
            if (!at.idle()) {
                value = block.kept(at, C::gates);
                normalise(k + 1, at, u);
            }
        }
        // The end has no step to read, but may.
        const int last = int(a.T) - 1;
        const auto loaded = read(k < last ? k : last, u, -block.clock.next(k));
        if (k > 0) block.template receive<Early>(k, c);
        else block.wait(c);
        if (at.idle()) return prepare_next(k, at);
        const Behind v = u.widened(loaded);
        float ds[C::states];
        collect(k, at, u, ds);
        if (k == int(a.T)) return end(at, u, ds);
        if constexpr (C::normalises) before_norm_within(k, at, u, v, value, ds);
        else through_step(k, at, u, v, {}, ds);
    }

    // Hands over what others need to normalise the value of a step.
    DEVICE void normalise(int k, const Element& at, const Unit& u) {
        if (k >= int(a.T)) return;
        const float value[1] = {normalised(at, u, u.behind(time(k)))};
        block.kept(at, C::gates) = value[0];
        block.template with_norm<VALUE, 1>(k, at, [&](auto norm) { norm.hand_over(value); });
    }

    DEVICE float normalised(const Element& at, const Unit& u, const Behind& v) {
        float r[C::gates], p[C::rows + 1];
        u.saw(v, block.own(at), UNITS, r, p);
        return C::normalised(v.x, r, v.s, p);
    }

    DEVICE void before_norm_within(int k, const Element& at, const Unit& u, const Behind& v,
                                   float value, float (&ds)[C::states]) {
        float r[C::gates], p[C::rows + 1], next[C::states], past[C::states];
        float n[1] = {value}, scale[1];
        block.template with_norm<VALUE, 1>(k, at, [&](auto norm) { norm.normalise(n, scale); });
        u.saw(v, block.own(at), UNITS, r, p);
        u.reached(time(k), v, ds, next, past);
        const float dn[1] = {C::normalised_gradient(v.x, r, v.s, p, value, n[0], next)};
        block.set(at, ds);
        block.kept(at, 0) = n[0];
        block.kept(at, 1) = scale[0];
        block.kept(at, 2) = dn[0];
        block.template with_norm<GRADIENT, 1>(k, at, [&](auto norm) { norm.hand_over(dn, n); });
    }

    DEVICE void through_norm_within(int k, int c) {
        const Element at = block.element(c);
        const Unit u = block.unit(at);
        const auto loaded = read(k, u, 0);
        block.wait(c);
        if (at.idle()) return;
        const Behind v = u.widened(loaded);
        const float n[1] = {block.kept(at, 0)}, scale[1] = {block.kept(at, 1)};
        float dv[1] = {block.kept(at, 2)}, ds[C::states];
        block.template with_norm<GRADIENT, 1>(
            k, at, [&](auto norm) { norm.gradient(dv, n, scale); });
        block.get(at, ds);
        through_step(k, at, u, v, {normalised(at, u, v), n[0], dv[0]}, ds);
    }

    DEVICE void through_step(int k, const Element& at, const Unit& u, const Behind& v,
                             const Within& within, float (&ds)[C::states]) {
        float dr[C::gates];
        found = u.vjp(time(k), v, block.own(at), UNITS, ds, dr, &block.summed(at, 0),
                      block.distance(), within);
        block.set(at, ds);
        for (int g = 0; g < Last::FIRST; ++g) block.kept(at, g) = dr[g];
        before_product<Last>(k, at, v, dr);
    }

    // From the gradient of what the step sees of a product to what the next round hands over.
    template <class W>
    DEVICE void before_product(int k, const Element& at, const Behind& v,
                               const float (&dr)[C::gates]) {
        if constexpr (NORM<C>) {
            float dn[W::COUNT], n[W::COUNT];
            for (int g = 0; g < W::COUNT; ++g) {
                n[g] = v.r[W::FIRST + g];
                dn[g] = dr[W::FIRST + g] * Unit::gain(block.own(at), UNITS, W::FIRST + g);
                block.kept(at, W::FIRST + g) = dn[g];
            }
            block.template with_norm<W>(k, at, [&](auto norm) { norm.hand_over(dn, n); });
        } else {
            block.template hand_over<W>(reader<W>(k), at, dr + W::FIRST);
        }
    }

    // The step that reads the gradient of a product of the k-th.
    template <class W> static DEVICE int reader(int k) { return W::FIRST ? k : k + 1; }

    template <class W> DEVICE void through_norm(int k, int c) {
        const Element at = block.element(c);
        const Unit u = block.unit(at);
        const auto loaded = read(k, u, 0);
        float d[W::COUNT], n[W::COUNT], scale[W::COUNT];
        for (int g = 0; g < W::COUNT; ++g)
            scale[g] = loaded.flags.live() ? u.scale(time(k), W::FIRST + g) : 0;
        block.wait(c);
        if (at.idle()) return;
        const Behind v = u.widened(loaded);
        for (int g = 0; g < W::COUNT; ++g) {
            n[g] = v.r[W::FIRST + g];
            d[g] = block.kept(at, W::FIRST + g);
        }
        block.template with_norm<W>(k, at, [&](auto norm) { norm.gradient(d, n, scale); });
        block.template hand_over<W>(reader<W>(k), at, d);
    }

    // From the gradient of what the inner step feeds to that of the early gates.
    DEVICE void through_inner(int k, int c) {
        const Element at = block.element(c);
        const Unit u = block.unit(at);
        const auto loaded = read(k, u, 0);
        block.template receive<Last>(k, c);
        if (at.idle()) return;
        const Behind v = u.widened(loaded);
        float ds[C::states], dr[C::gates] = {};
        block.get(at, ds);
        for (int g = 0; g < C::late; ++g) dr[g] = block.kept(at, g);
        float dq[1];
        block.template products<Last>(at, dq);
        const float dropped = u.at.exists ? u.dropped(dq[0]) : 0;
        found = u.inner_vjp(time(k), v, block.own(at), UNITS, dropped, ds, dr);
        block.set(at, ds);
        before_product<Early>(k, at, v, dr);
    }
};

}  // namespace rnnkit
