// What a block of the persistent scan has, forward and backward: its units' weights and parameters,
// the states of its rows, and its part in what is handed over.
#pragma once
#include "exchange.h"
#include "norm.h"
#include "rows.h"
#include "step.h"
#include "weights.h"

namespace rnnkit {

// Of a row of the exchange: where what the second product is fed begins, and sums of what is
// normalised.
struct Layout {
    int64_t late, sums;
    Rows rows;
};

template <class Kind, class C, int UNIT_TILES, bool BACKWARD, Via VIA> struct Block {
    using S = typename Kind::S;
    static constexpr bool INNER = C::late < C::gates;
    template <int FIRST, int COUNT>
    using Of = std::conditional_t<VIA == Via::BLOCK,
                                  RowWeights<Kind, C, UNIT_TILES, BACKWARD, FIRST, COUNT>,
                                  TileWeights<Kind, C, UNIT_TILES, BACKWARD, FIRST, COUNT>>;
    using Early = Of<0, C::late>;
    using Late = std::conditional_t<INNER, Of<C::late, C::gates - C::late>, NoWeights>;
    using Last = std::conditional_t<INNER, Late, Early>;

    static constexpr int UNITS = UNIT_TILES * TILE_ROWS;
    static constexpr int COLUMNS = Early::COLUMNS;  // rows of the batch in a chunk
    static_assert(UNITS * COLUMNS <= THREADS, "a thread has one unit of one row");
    // Where one row leaves most threads without a unit, they take turns: who has units in the next
    // step loads what that needs while others compute.
    static constexpr int TURNS = VIA == Via::BLOCK ? THREADS / UNITS : 1;
    using Unit = rnnkit::Unit<S, C>;
    using Exchange = rnnkit::Exchange<VIA, COLUMNS>;

    template <class V> HOST_DEVICE static constexpr V most(V a, V b) { return a > b ? a : b; }

    // A thread's element of a chunk: a unit of the block and a row of the batch.
    struct Element {
        int unit, column;
        int chunk;

        DEVICE bool idle() const { return UNITS * COLUMNS < THREADS && column >= COLUMNS; }
        // Whether it is the thread's turn in the next step.
        DEVICE bool next() const { return column == COLUMNS; }
    };

    // In shared memory: the warps' sums; what a unit has, as `Unit` says; for each of a thread's
    // elements the states, sums over all steps, and what waits for other blocks within a step; what
    // the exchange needs; the weights that registers do not hold. All but the last two begin where
    // the compiler knows, which saves registers.
    static constexpr int SUMS = most(Early::SUMS, Late::SUMS);
    static constexpr int OWN = (C::gates * (1 + NORM<C>) + C::rows) * UNITS;
    static constexpr int SUMMED = BACKWARD ? C::rows : 0;
    static constexpr int KEPT = (NORM<C> || INNER ? C::gates : 0) + C::normalises;
    static constexpr int EACH = C::states + SUMMED + KEPT;
    // Of a step, after one that comes before all.
    static constexpr int ROUNDS = (1 + NORM<C>) * (1 + INNER) + C::normalises;
    // Of a row: of what is normalised of each gate, and by the step, which takes two backward.
    static constexpr int NORM_SUMS = NORM<C> * C::gates + C::normalises * (1 + BACKWARD);
    using Partials = rnnkit::Partials<Exchange, UNITS, NORM_SUMS>;

    // A row of the exchange: what the products are fed, and sums of what is normalised.
    HOST_DEVICE static int64_t fed_bytes(int64_t H) { return Early::bytes(H) + Late::bytes(H); }
    HOST_DEVICE static int64_t pitch(int64_t H) {
        return Exchange::pitch(fed_bytes(H) + Partials::bytes(H));
    }

    static Layout layout_of(const Arguments& a) {
        const int full = int(a.H / UNITS), pairs = int(Partials::pairs(a.H));
        const Rows rows = {full, pairs, float(a.H % UNITS), 1.f / a.H, float(a.eps)};
        return {Early::bytes(a.H), fed_bytes(a.H), rows};
    }

    HOST_DEVICE static int64_t shared_bytes(int64_t H, int64_t chunks) {
        const int64_t values = SUMS + OWN + EACH * chunks * COLUMNS * UNITS;
        const int64_t all = values * int64_t(sizeof(float)) + Early::shared_bytes(H)
                            + Late::shared_bytes(H) + Exchange::shared_bytes(pitch(H), chunks);
        return most(all, most(Early::Parts::BYTES, Late::Parts::BYTES));
    }

    const Arguments& a;
    const Form& form;
    const Layout& layout;
    const Clock clock;
    Exchange exchange;
    const int first_unit, first_row;  // of the batch, of the block's slice
    int turn = 0;
    Early early;
    Late late;

    // Of the loads of weights, one for each part. More than one take a good part of the time to
    // compile, and give steps of more instructions; but of fewer, where registers are scarcest.
    static constexpr int PARTS = most(Early::Parts::COUNT, Late::Parts::COUNT);
    static constexpr int COPIES = !BACKWARD && C::gates * UNIT_TILES >= 8 ? PARTS + 1 : 1;

    DEVICE Block(const Arguments& a, const Form& form, const Layout& layout)
        : a(a), form(form), layout(layout), clock(a, block_y() / int(form.slices)),
          exchange(form, after_state()), first_unit(block_x() * UNITS),
          first_row(settled(block_y() % int(form.slices) * chunks() * COLUMNS)) {
        char* const rest = after_state() + Exchange::shared_bytes(form.pitch, form.chunks);
        char* const stage = reinterpret_cast<char*>(sums());
#pragma unroll(COPIES)
        for (int part = PARTS; part >= 0; --part) {
            early.bring(part, a, clock.n, first_unit, part ? stage : rest);
            if constexpr (INNER) {
                synchronise();
                char* const after = rest + Early::shared_bytes(a.H);
                late.bring(part, a, clock.n, first_unit, part ? stage : after);
            }
            synchronise();
        }
        if constexpr (!INNER) early.clear(sums());
#pragma unroll 1
        for (int i = thread(); i < OWN; i += THREADS) own()[i] = parameter(i);
        exchange.begin();
        synchronise();
    }

    DEVICE static float* sums() { return shared_memory<float>(); }
    DEVICE static float* own() { return sums() + SUMS; }
    DEVICE static const float* own(const Element& at) { return own() + at.unit; }
    DEVICE static float* state() { return own() + OWN; }

    DEVICE char* after_state() const {
        return reinterpret_cast<char*>(state() + EACH * distance());
    }

    // Of one of the block's units: the biases of gates; the step's parameters; the norm's gains,
    // which come first in p.
    DEVICE float parameter(int i) const {
        constexpr int gains = NORM<C> * C::gates, rows = gains + C::rows;
        const int64_t row = i / UNITS, unit = first_unit + i % UNITS, n = clock.n;
        if (unit >= a.H) return 0;
        if (row < C::gates)
            return a.b ? wide(static_cast<const S*>(a.b)[(n * C::gates + row) * a.H + unit]) : 0;
        const int64_t k = row - C::gates, place = k < C::rows ? gains + k : k - C::rows;
        return wide(static_cast<const S*>(a.p)[(n * rows + place) * a.H + unit]);
    }

    DEVICE Element element(int chunk) const {
        const int i = TURNS == 1 ? thread() : (thread() + (TURNS - turn) * UNITS) % THREADS;
        return {i % UNITS, i / UNITS, chunk};
    }

    // What does not exist stands at the first place that is the block's own, which always does, so
    // that it may be read.
    DEVICE Unit unit(const Element& at) const {
        const int b = first_row + at.chunk * COLUMNS + at.column, j = first_unit + at.unit;
        const bool in_batch = at.column < COLUMNS && (VIA == Via::BLOCK || b < int(a.B));
        const bool exists = in_batch && j < int(a.H);
        return {a, form, clock,
                {exists ? b : first_row, clock.n, exists ? j : first_unit, exists}};
    }

    // The first of an element's values, which lie `distance()` apart.
    DEVICE static float* values(const Element& at) {
        return state() + (at.chunk * COLUMNS + at.column) * UNITS + at.unit;
    }
    DEVICE int distance() const { return chunks() * COLUMNS * UNITS; }

    DEVICE void get(const Element& at, float (&s)[C::states]) const {
        for (int k = 0; k < C::states; ++k) s[k] = values(at)[k * distance()];
    }
    DEVICE void set(const Element& at, const float (&s)[C::states]) const {
        for (int k = 0; k < C::states; ++k) values(at)[k * distance()] = s[k];
    }
    DEVICE float& summed(const Element& at, int k) const {
        return values(at)[(C::states + k) * distance()];
    }
    DEVICE float& kept(const Element& at, int k) const { return summed(at, SUMMED + k); }

    // Counted anew, so that they take no register from step to step.
    DEVICE void begin_step(int k) {
        exchange.rounds = 1 + k * ROUNDS;
        turn = k % TURNS;
    }

    // A block by itself has one row, and so one chunk.
    DEVICE int chunks() const { return VIA == Via::BLOCK ? 1 : int(form.chunks); }

    // A stage of a step, for every chunk: it waits for the round before and ends with one. `rest` is
    // what others need not wait for.
    template <class Stage, class Rest> DEVICE void round(const Stage& stage, const Rest& rest) {
        for (int c = 0; c < chunks(); ++c) {
            stage(c);
            exchange.arrive(c);
            rest(c);
        }
        ++exchange.rounds;
    }
    template <class Stage> DEVICE void round(const Stage& stage) {
        round(stage, [](int) {});
    }
    DEVICE void wait(int chunk) const { exchange.wait(chunk); }

    // Waits; then adds up the products of a step.
    template <class W> DEVICE void receive(int step, int chunk) {
        wait(chunk);
        const char* const q = exchange.row(step, chunk, 0) + offset<W>();
        const int64_t pitch = form.pitch;
        weights<W>().template multiply<Exchange>(q, pitch, sums());
        synchronise();
    }

    // An element's products: forward, of each of W's gates.
    template <class W> DEVICE void products(const Element& at, float (&found)[W::ROW_GATES]) const {
        weights<W>().template sum<!INNER>(sums(), at.unit, at.column, found);
    }

    template <class W> DEVICE const W& weights() const {
        if constexpr (W::FIRST > 0) return late;
        else return early;
    }

    // Of the product of W in a row of the exchange.
    template <class W> DEVICE int64_t offset() const { return W::FIRST ? layout.late : 0; }

    // One element's values for the product of a step.
    template <class W> DEVICE void hand_over(int step, const Element& at, const float* v) {
        constexpr int gates = BACKWARD ? W::COUNT : 1, size = sizeof(S);
        char* const own = exchange.row(step, at.chunk, at.column) + offset<W>() + first_unit * size;
        const int padded = int(W::padded(a.H));
        if (first_unit + at.unit < int(a.H))
            for (int g = 0; g < gates; ++g)
                reinterpret_cast<S*>(own)[g * padded + at.unit] = operand<Kind>(v[g]);
        exchange.template share<UNITS, gates, UNITS * size>(
            at.chunk, own, padded * size, (padded - first_unit) * size, padded * size, at.unit);
    }

    // Calls f with the norm of COUNT values of one row, whose sums lie from FIRST on.
    template <int FIRST, int COUNT, class F>
    DEVICE void with_norm(int step, const Element& at, const F& f) {
        char* const sums = exchange.row(step, at.chunk, at.column) + layout.sums;
        const Partials partials
            = {exchange, layout.rows, reinterpret_cast<uint4*>(sums), at.chunk, at.unit};
        constexpr int per_gate = 1;
        if (COUNT == 1 || a.norm != per_gate) f(Norm<Partials, UNITS, 1, COUNT>{partials, FIRST});
        else f(Norm<Partials, UNITS, COUNT, 1>{partials, FIRST});
    }
    template <class W, class F>
    DEVICE void with_norm(int step, const Element& at, const F& f) {
        with_norm<W::FIRST, W::COUNT>(step, at, f);
    }
};

}  // namespace rnnkit
