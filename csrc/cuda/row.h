// What a launch of the stepwise scan has of a row of the batch: its units, and what lies in memory
// between one launch or product and the next.
//
// Where no unit needs another of its row, blocks share the row. Else one block has it whole, and
// walks over its units several times in a launch.
#pragma once
#include "gemm.h"
#include "step.h"

namespace rnnkit {

// What the loop has beside the arguments of the scan. rnnkit/cuda/stepwise.py fills it in this
// order, eight bytes a field. V is the arithmetic's type.
struct Steps {
    void* handle;   // cuBLAS's, with the stream of the launches
    Gemm gemm;
    void* states;   // (S, B, N, H), or their gradients, in V
    void* fed;      // what products are fed, in x's type: (B, N, H), backward (B, N, G, H)
    void* product;  // what they give, without bias, in V: (B, N, G, H), backward (B, N, H)
    void* kept;     // of a unit, within a step: (B, N, G + 1, H), in V
};

// The gates that a product of a step serves.
template <int BEGIN, int NUMBER> struct GateRange {
    static constexpr int FIRST = BEGIN, COUNT = NUMBER;
};

template <class T, class C> struct Row {
    using S = T;
    using V = Wide<S>;
    using Unit = rnnkit::Unit<S, C>;
    static constexpr bool INNER = C::late < C::gates;
    static constexpr bool WHOLE = NORM<C> || C::normalises;
    using Early = GateRange<0, C::late>;
    using Last = std::conditional_t<INNER, GateRange<C::late, C::gates - C::late>, Early>;

    // Of a block, and at least of a multiprocessor: a value takes so many registers.
    static constexpr int REGISTERS = sizeof(V) / 4;
    static constexpr int THREADS = WHOLE ? 512 / REGISTERS : 128;
    static constexpr int BLOCKS = WHOLE ? 1 : 8 / REGISTERS;
    static constexpr int GAINS = NORM<C> * C::gates;
    using Own = V[C::gates + C::rows + GAINS];

    const Arguments& a;
    const Form& form;
    const Steps& steps;
    const Clock clock;

    DEVICE Row(const Arguments& a, const Form& form, const Steps& steps)
        : a(a), form(form), steps(steps), clock(a, block_x() % int(a.N)) {}

    // Calls f with every unit that the thread has.
    template <class F> DEVICE void each_unit(const F& f) const {
        const int first = block_y() * threads() + thread(), b = block_x() / int(a.N);
        for (int j = first; j < a.H; j += blocks_y() * threads())
            f(Unit{a, form, clock, {b, clock.n, j, true}});
    }

    // The place of one of a row's G values of a unit.
    DEVICE int64_t index(const Unit& u, int g, int G = C::gates) const {
        return (int64_t(block_x()) * G + g) * a.H + u.at.j;
    }

    DEVICE V& state(const Unit& u, int k) const {
        return static_cast<V*>(steps.states)[u.state(k)];
    }
    DEVICE V& product(int64_t at) const { return static_cast<V*>(steps.product)[at]; }
    DEVICE V& kept(const Unit& u, int k) const {
        return static_cast<V*>(steps.kept)[index(u, k, C::gates + 1)];
    }

    // Of a unit, as `Unit` says. The norm's gains come first in p.
    DEVICE void load_own(const Unit& u, Own& own) const {
        const int64_t n = u.at.n, j = u.at.j;
        for (int g = 0; g < C::gates; ++g)
            own[g] = a.b ? u.value(a.b, (n * C::gates + g) * a.H + j) : 0;
        for (int k = 0; k < C::rows + GAINS; ++k) {
            const int place = k < C::rows ? GAINS + k : k - C::rows;
            own[C::gates + k] = u.value(a.p, (n * (C::rows + GAINS) + place) * a.H + j);
        }
    }
};

}  // namespace rnnkit
