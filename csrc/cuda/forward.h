// The forward scan by a block.
//
// What blocks hand over: h for the product; with an inner step, what it feeds the late gates'; and
// where there is a norm, sums of what it normalises. Each ends a stage of the step. All chunks take
// turns at a stage, so that one's values are on their way while another's are computed; what a row
// needs in its next stage is kept in shared memory.
#pragma once
#include "block.h"

namespace rnnkit {

template <class Kind, class C, int UNIT_TILES, Via VIA> struct Forward {
    using Block = rnnkit::Block<Kind, C, UNIT_TILES, false, VIA>;
    using Early = typename Block::Early;
    using Late = typename Block::Late;
    using Element = typename Block::Element;
    using Unit = typename Block::Unit;
    using Ahead = typename Unit::Ahead;
    static constexpr int UNITS = Block::UNITS;
    static constexpr bool INNER = Block::INNER;

    const Arguments& a;
    Block block;
    // What a step reads, where threads take turns.
    typename Unit::template AheadOf<typename Block::S> coming;
    typename Unit::Left left = {};

    DEVICE Forward(const Arguments& a, const Form& form, const Layout& layout)
        : a(a), block(a, form, layout) {}

    DEVICE void run() {
        block.round([&](int c) { begin(c); });
        for (int k = 0; k < int(a.T); ++k) {
            block.begin_step(k);
            const auto rest = [&](int c) { store(k, c); };
            block.round([&](int c) { multiply<Early>(k, c); }, rest);
            if constexpr (NORM<C>) block.round([&](int c) { normalise<Early>(k, c); }, rest);
            if constexpr (INNER) block.round([&](int c) { multiply<Late>(k, c); }, rest);
            if constexpr (INNER && NORM<C>) block.round([&](int c) { normalise<Late>(k, c); }, rest);
            if constexpr (C::normalises) block.round([&](int c) { normalise_within(k, c); }, rest);
        }
        for (int c = 0; c < block.chunks(); ++c) end(c);
    }

    DEVICE void begin(int c) {
        const Element at = block.element(c);
        if (at.idle()) return;
        const Unit u = block.unit(at);
        float s[C::states];
        for (int k = 0; k < C::states; ++k) s[k] = u.initial(k);
        block.set(at, s);
        feed<Early>(0, at, u, s[0]);
        if (Block::TURNS > 1) prepare(0, u);
    }

    DEVICE void end(int c) {
        const Element at = block.element(c);
        if (at.idle()) return;
        float s[C::states];
        block.get(at, s);
        block.unit(at).leave(s);
    }

    DEVICE void store(int k, int c) {
        block.unit(block.element(c)).store(block.clock.time(k), left);
        left.any = false;
    }

    template <class W> DEVICE void feed(int k, const Element& at, const Unit& u, float q) {
        // Nobody waits for the last h, and to a cluster's block that has returned none may come.
        if (VIA == Via::CLUSTER && k == int(a.T)) return;
        const float fed = u.at.exists ? u.dropped(q) : 0;
        block.template hand_over<W>(k, at, &fed);
    }

    DEVICE void prepare(int k, const Unit& u) {
        if (k < int(a.T)) coming = u.load_ahead(block.clock.time(k), true, block.clock.next(k));
    }

    // Of those whose turn comes next.
    DEVICE void prepare_next(int k, const Element& at) {
        if (Block::TURNS > 1 && at.next()) prepare(k + 1, block.unit({at.unit, 0, at.chunk}));
    }

    // What a step reads. In a later round it is loaded once more: it would take registers from
    // round to round. Norms of products leave x to that; the first of them has the next one
    // brought.
    DEVICE auto read(int k, const Unit& u, bool wanted, int onward) const {
        if constexpr (Block::TURNS > 1) {
            auto found = coming;
            for (int g = 0; g < C::gates; ++g) found.x[g] = wanted ? found.x[g] : 0;
            return found;
        } else return u.load_ahead(block.clock.time(k), wanted, onward);
    }
    DEVICE auto again(int k, const Unit& u, bool first) const {
        const bool wanted = NORMED<C> != Normed::SUMS;
        const int onward = first && NORMED<C> == Normed::PRODUCTS ? block.clock.next(k) : 0;
        return read(k, u, wanted, onward);
    }

    // From what a product is fed to the product.
    template <class W> DEVICE void multiply(int k, int c) {
        const Element at = block.element(c);
        const Unit u = block.unit(at);
        const bool wanted = NORMED<C> != Normed::PRODUCTS;
        const int onward = wanted && W::FIRST == 0 ? block.clock.next(k) : 0;
        const auto loaded = read(k, u, wanted, onward);
        block.template receive<W>(k, c);
        if (at.idle()) return W::FIRST == 0 ? prepare_next(k, at) : void();
        const Ahead v = u.widened(loaded);
        float r[W::COUNT];
        block.template products<W>(at, r);
        // What the late product is fed of a zero state is zero already.
        for (int g = 0; W::FIRST == 0 && g < W::COUNT; ++g) r[g] = v.flags.fresh() ? 0 : r[g];
        if constexpr (NORM<C>) before_norm<W>(k, at, v, r);
        else after<W>(k, at, u, v, r);
    }

    template <class W>
    DEVICE void before_norm(int k, const Element& at, const Ahead& v, float (&r)[W::COUNT]) {
        for (int g = 0; g < W::COUNT; ++g) {
            r[g] += v.x[W::FIRST + g];
            block.kept(at, W::FIRST + g) = r[g];
        }
        block.template with_norm<W>(k, at, [&](auto norm) { norm.hand_over(r); });
    }

    // From the product to what it is normalised to.
    template <class W> DEVICE void normalise(int k, int c) {
        const Element at = block.element(c);
        const Unit u = block.unit(at);
        const auto loaded = again(k, u, W::FIRST == 0);
        block.wait(c);
        if (at.idle()) return;
        const Ahead v = u.widened(loaded);
        float r[W::COUNT], scale[W::COUNT];
        for (int g = 0; g < W::COUNT; ++g) r[g] = block.kept(at, W::FIRST + g);
        block.template with_norm<W>(k, at, [&](auto norm) { norm.normalise(r, scale); });
        after<W>(k, at, u, v, r);
    }

    // From what was computed of a product to what the next round hands over.
    template <class W>
    DEVICE void after(int k, const Element& at, const Unit& u, const Ahead& v,
                      const float (&found)[W::COUNT]) {
        float r[C::gates] = {};
        for (int g = 0; g < W::FIRST; ++g) r[g] = block.kept(at, g);
        for (int g = W::FIRST; g < W::FIRST + W::COUNT; ++g)
            r[g] = u.seen(block.own(at), UNITS, g, found[g - W::FIRST]);
        if constexpr (INNER && W::FIRST == 0) inner_step(k, at, u, v, r);
        else if constexpr (C::normalises) before_norm_within(k, at, u, v, r);
        else advance(k, at, u, v, r, 0, 0);
    }

    DEVICE void inner_step(int k, const Element& at, const Unit& u, const Ahead& v,
                           const float (&r)[C::gates]) {
        float s[C::states], p[C::rows + 1];
        enter(at, u, v, s, p);
        for (int g = 0; g < C::late; ++g) block.kept(at, g) = r[g];
        feed<Late>(k, at, u, C::inner_step(v.x, r, s, p));
    }

    DEVICE void before_norm_within(int k, const Element& at, const Unit& u, const Ahead& v,
                                   const float (&r)[C::gates]) {
        float s[C::states], p[C::rows + 1];
        enter(at, u, v, s, p);
        const float value[1] = {C::normalised(v.x, r, s, p)};
        for (int g = 0; g < C::gates; ++g) block.kept(at, g) = r[g];
        block.kept(at, C::gates) = value[0];
        block.template with_norm<C::gates, 1>(k, at, [&](auto norm) { norm.hand_over(value); });
    }

    // From the value that the step normalises to the next states.
    DEVICE void normalise_within(int k, int c) {
        const Element at = block.element(c);
        const Unit u = block.unit(at);
        const auto loaded = again(k, u, false);
        block.wait(c);
        if (at.idle()) return;
        const Ahead v = u.widened(loaded);
        const float value = block.kept(at, C::gates);
        float r[C::gates], n[1] = {value}, scale[1];
        block.template with_norm<C::gates, 1>(k, at, [&](auto norm) { norm.normalise(n, scale); });
        for (int g = 0; g < C::gates; ++g) r[g] = block.kept(at, g);
        advance(k, at, u, v, r, value, n[0]);
    }

    DEVICE void advance(int k, const Element& at, const Unit& u, const Ahead& v,
                        float (&r)[C::gates], float value, float n) {
        float s[C::states], p[C::rows + 1];
        enter(at, u, v, s, p);
        left = u.advance(block.clock.time(k), v, r, p, value, n, s);
        block.set(at, s);
        feed<Early>(k + 1, at, u, s[0]);
    }

    // The states that enter a step, and its parameters.
    DEVICE void enter(const Element& at, const Unit& u, const Ahead& v, float (&s)[C::states],
                      float (&p)[C::rows + 1]) {
        block.get(at, s);
        u.enter(v, s);
        u.parameters(block.own(at), UNITS, p);
    }
};

}  // namespace rnnkit
