// The persistent scan: one launch for a whole sequence, with all weights on chip.
//
// `form.blocks` blocks share the units of one group for one slice of the batch. Each holds its own
// units' weights, in registers first; after every step it hands the others what their products need
// of its units: h forward, the products' gradient backward, through L2. A chunk of the slice's rows
// has a flag of its own, which counts the blocks that have handed it over, so that a block works on
// one chunk while another is on its way. No slice waits for another.
//
// Two buffers do for what is handed over: whoever writes for step k + 1 has seen every block's
// arrival for step k, which comes after that block's last look at step k - 1, in the same buffer.
#pragma once
#include "product.h"
#include "step.h"

namespace rnnkit {

template <class Kind, class C, int UNIT_TILES, bool BACKWARD> struct Persistent {
    using S = typename Kind::S;
    static constexpr int UNITS = UNIT_TILES * TILE_ROWS;  // of a block
    static constexpr int ROW_TILES = UNIT_TILES * (BACKWARD ? 1 : C::gates);
    // So many that every thread has a unit of a row.
    static constexpr int COLUMN_TILES = UNIT_TILES == 1 && Kind::sums == 4 ? 2 : 1;
    using Multiply = Product<Kind, ROW_TILES, COLUMN_TILES>;
    static constexpr int COLUMNS = Multiply::COLUMNS;     // rows of the batch in a chunk
    static constexpr int EACH = (UNITS * COLUMNS + THREADS - 1) / THREADS;  // elements of a thread
    static constexpr int SUMMED = BACKWARD ? C::rows : 0;
    static constexpr int OWN = (C::gates + C::rows) * UNITS;

    // Of the inner dimension of the product.
    HOST_DEVICE static int64_t depth(int64_t H) { return BACKWARD ? C::gates * H : H; }

    // What a row of the exchange takes.
    HOST_DEVICE static int64_t pitch(int64_t H) {
        return Multiply::most_tiles(depth(H)) * WARPS * TILE_BYTES;
    }

    HOST_DEVICE static int64_t shared_bytes(int64_t H, int64_t chunks) {
        const int64_t values = Multiply::SUMS + OWN
                               + (C::states + SUMMED) * chunks * COLUMNS * UNITS;
        const int64_t all = Multiply::shared_bytes(depth(H)) + values * int64_t(sizeof(float));
        return all > Multiply::STAGE_BYTES ? all : Multiply::STAGE_BYTES;
    }

    const Arguments& a;
    const Form& form;
    const Clock clock;
    const int slice, first_unit;
    Multiply multiply;

    DEVICE Persistent(const Arguments& a, const Form& form)
        : a(a), form(form), clock(a, block_y() / int(form.slices)),
          slice(block_y() % int(form.slices)), first_unit(block_x() * UNITS) {
        load_weights();
        for (int i = thread(); i < OWN; i += THREADS) own()[i] = parameter(i);
        synchronise();
    }

    // Shared memory: the warps' sums; bias and parameters of the units; the states of every row, and
    // what is summed over all steps; the weights that registers do not hold. All but the last begin
    // where the compiler knows, which saves registers.
    DEVICE static float* sums() { return shared_memory<float>(); }
    DEVICE static float* own() { return sums() + Multiply::SUMS; }
    DEVICE static float* state() { return own() + OWN; }

    DEVICE void load_weights() {
        const S* const w = static_cast<const S*>(a.w) + int64_t(clock.n) * C::gates * a.H * a.H;
        const int64_t H = a.H, first = first_unit;
        float* const rest = state() + (C::states + SUMMED) * distance();
        multiply.load(sums(), rest, depth(H), [=](int row, int64_t k) {
            const int g = BACKWARD ? 0 : row / TILE_ROWS % C::gates;
            const int tile = row / TILE_ROWS / (BACKWARD ? 1 : C::gates);
            const int64_t unit = first + tile * TILE_ROWS + row % TILE_ROWS;
            if (unit >= H || k >= depth(H)) return 0.f;
            return wide(w[BACKWARD ? k * H + unit : (g * H + unit) * H + k]);
        });
    }

    // A gate's bias, or one of the cell's own parameters, of one of the block's units.
    DEVICE float parameter(int i) const {
        const int64_t row = i / UNITS, unit = first_unit + i % UNITS, n = clock.n;
        if (unit >= a.H) return 0;
        if (row >= C::gates)
            return wide(static_cast<const S*>(a.p)[(n * C::rows + row - C::gates) * a.H + unit]);
        return a.b ? wide(static_cast<const S*>(a.b)[(n * C::gates + row) * a.H + unit]) : 0;
    }

    // A thread's element of a chunk: a unit of the block and a row of the batch.
    struct Element {
        int unit, column;
        int chunk;
    };

    DEVICE Element element(int chunk, int e) const {
        const int i = thread() + e * THREADS;
        return {i % UNITS, i / UNITS, chunk};
    }

    DEVICE Unit<S, C> unit(const Element& at) const {
        const int b = (slice * int(form.chunks) + at.chunk) * COLUMNS + at.column;
        const int j = first_unit + at.unit;
        const bool exists = at.column < COLUMNS && b < a.B && j < a.H;
        return {a, form, clock, {b, clock.n, j, exists}};
    }

    // Of a value for each element, the first of `count`, which lie `distance()` apart.
    DEVICE static int place(const Element& at) {
        return (at.chunk * COLUMNS + at.column) * UNITS + at.unit;
    }
    DEVICE int distance() const { return int(form.chunks) * COLUMNS * UNITS; }

    DEVICE void get(const Element& at, float (&s)[C::states]) const {
        for (int k = 0; k < C::states; ++k) s[k] = state()[place(at) + k * distance()];
    }
    DEVICE void set(const Element& at, const float (&s)[C::states]) {
        for (int k = 0; k < C::states; ++k) state()[place(at) + k * distance()] = s[k];
    }

    DEVICE float* summed(const Element& at) const {
        return state() + place(at) + C::states * distance();
    }

    // The first row of a chunk in what is handed over for a step.
    DEVICE char* buffer(int step, int chunk) const {
        const int index = (step % 2 * blocks_y() + block_y()) * int(form.chunks) + chunk;
        return form.exchange + int64_t(index) * COLUMNS * form.pitch;
    }

    // Values of one element, `count` of them, for the product of a step.
    DEVICE void hand_over(int step, const Element& at, const float* values, int count) const {
        const int unit = first_unit + at.unit;
        if (at.column >= COLUMNS || unit >= a.H) return;
        S* const row = reinterpret_cast<S*>(buffer(step, at.chunk) + at.column * form.pitch);
        for (int g = 0; g < count; ++g) row[g * a.H + unit] = operand<Kind>(values[g]);
    }

    DEVICE unsigned* flag(int chunk) const {
        return form.arrivals + block_y() * int(form.chunks) + chunk;
    }

    // All threads of the block have handed the chunk over; nobody looks at `sums` any more.
    DEVICE void arrive(int chunk) const {
        synchronise();
        if (thread() == 0) add_release(flag(chunk), 1);
    }

    // Waits until every block has arrived so often; then adds up the products of a step.
    DEVICE void receive(int step, int chunk, int times) {
        const unsigned all = unsigned(times) * blocks_x();
        if (thread() == 0)
            while (load_acquire(flag(chunk)) < all) pause();
        synchronise();
        multiply(buffer(step, chunk), form.pitch, sums());
        synchronise();
    }

    DEVICE void run() {
        if constexpr (BACKWARD) backward();
        else forward();
    }

    DEVICE void forward() {
        for (int c = 0; c < form.chunks; ++c) {
            for (int e = 0; e < EACH; ++e) enter(element(c, e));
            arrive(c);
        }
        for (int k = 0; k < a.T; ++k)
            for (int c = 0; c < form.chunks; ++c) advance(k, c);
        for (int c = 0; c < form.chunks; ++c)
            for (int e = 0; e < EACH; ++e) {
                const Element at = element(c, e);
                float s[C::states];
                if (at.column >= COLUMNS) continue;
                get(at, s);
                unit(at).leave(s);
            }
    }

    DEVICE void enter(const Element& at) {
        if (at.column >= COLUMNS) return;
        const Unit<S, C> u = unit(at);
        float s[C::states];
        for (int k = 0; k < C::states; ++k) s[k] = u.initial(k);
        set(at, s);
        const float fed = u.at.exists ? u.dropped(s[0]) : 0;
        hand_over(0, at, &fed, 1);
    }

    DEVICE void advance(int k, int c) {
        const int64_t t = clock.time(k);
        typename Unit<S, C>::Ahead ahead[EACH];
#pragma unroll
        for (int e = 0; e < EACH; ++e) ahead[e] = unit(element(c, e)).ahead(t);
        receive(k, c, k + 1);
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const Element at = element(c, e);
            if (at.column >= COLUMNS) continue;
            const Unit<S, C> u = unit(at);
            const int tile = at.unit / TILE_ROWS * C::gates, row = at.unit % TILE_ROWS;
            float r[C::gates], s[C::states];
#pragma unroll
            for (int g = 0; g < C::gates; ++g)
                r[g] = Multiply::sum(sums(), (tile + g) * TILE_ROWS + row, at.column);
            get(at, s);
            u.step(t, ahead[e], r, own() + at.unit, UNITS, s);
            set(at, s);
            const float fed = u.at.exists ? u.dropped(s[0]) : 0;
            hand_over(k + 1, at, &fed, 1);
        }
        arrive(c);
    }

    DEVICE void backward() {
        for (int c = 0; c < form.chunks; ++c)
            for (int e = 0; e < EACH; ++e) {
                const Element at = element(c, e);
                if (at.column >= COLUMNS) continue;
                float ds[C::states];
                for (int k = 0; k < C::states; ++k) ds[k] = unit(at).final(k);
                set(at, ds);
                for (int k = 0; k < SUMMED; ++k) summed(at)[k * distance()] = 0;
            }
        for (int k = 0; k < a.T; ++k)
            for (int c = 0; c < form.chunks; ++c) go_back(k, c);
        for (int c = 0; c < form.chunks; ++c) {
            receive(int(a.T), c, int(a.T));
            for (int e = 0; e < EACH; ++e) finish(element(c, e));
        }
    }

    // ds of the states that enter the step after the k-th from the last, with the products' part.
    DEVICE void collect(int k, const Element& at, const Unit<S, C>& u, float (&ds)[C::states]) {
        get(at, ds);
        if (k == 0 || !u.at.exists || clock.fresh(clock.time(a.T - k), u.at.b)) return;
        ds[0] += u.dropped(Multiply::sum(sums(), at.unit, at.column));
    }

    DEVICE void go_back(int k, int c) {
        const int64_t t = clock.time(a.T - 1 - k);
        typename Unit<S, C>::Behind behind[EACH];
#pragma unroll
        for (int e = 0; e < EACH; ++e) behind[e] = unit(element(c, e)).behind(t);
        if (k > 0) receive(k, c, k);
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const Element at = element(c, e);
            if (at.column >= COLUMNS) continue;
            const Unit<S, C> u = unit(at);
            float ds[C::states], dr[C::gates];
            collect(k, at, u, ds);
            u.vjp(t, behind[e], own() + at.unit, UNITS, ds, dr, summed(at), distance());
            set(at, ds);
            hand_over(k + 1, at, dr, C::gates);
        }
        arrive(c);
    }

    // The gradient of the initial states, and this row's part of that of the parameters.
    DEVICE void finish(const Element& at) {
        if (at.column >= COLUMNS) return;
        const Unit<S, C> u = unit(at);
        if (!u.at.exists) return;
        float ds[C::states];
        collect(int(a.T), at, u, ds);
        for (int k = 0; k < C::states; ++k) u.put(a.ds0, u.state(k), ds[k]);
        for (int k = 0; k < SUMMED; ++k)
            static_cast<float*>(a.dp)[((u.at.b * a.N + u.at.n) * C::rows + k) * a.H + u.at.j]
                = summed(at)[k * distance()];
    }
};

template <class Kind, class C, int UNIT_TILES, bool BACKWARD>
KERNEL(THREADS, 1) void persistent(const Arguments a, const Form form) {
    Persistent<Kind, C, UNIT_TILES, BACKWARD>(a, form).run();
}

template <class Kind, class C, int UNIT_TILES, bool BACKWARD>
int launch_persistent(const Arguments& a, const Form& form) {
    using P = Persistent<Kind, C, UNIT_TILES, BACKWARD>;
    Launch how;
    how.x = int(form.blocks);
    how.y = int(form.slices * a.N);
    how.threads = THREADS;
    how.shared_bytes = int(P::shared_bytes(a.H, form.chunks));
    how.cooperative = true;
    how.stream = form.stream;
    return launch(persistent<Kind, C, UNIT_TILES, BACKWARD>, how, a, form);
}

}  // namespace rnnkit
