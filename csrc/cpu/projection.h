// The input's part of all gates of all groups, x = input @ w_ih.T + b_ih, and its gradients.
#pragma once
#include "outer.h"
#include "scan.h"

namespace rnnkit {
namespace RNNKIT_ISA {

template <class S> struct Projection {
    using R = Real<S>;
    static constexpr bool SAME = sizeof(S) == sizeof(R);
    // Rows of one product.
    static constexpr int64_t ROWS = 48;

    const Arguments& a;
    int64_t gates;
    bool is_forward;
    int64_t width;  // values of all gates of all groups
    Array<R> packed;

    Projection(const Arguments& a, int64_t gates, bool is_forward)
        : a(a), gates(gates), is_forward(is_forward), width(a.N * gates * a.H),
          packed(!a.input              ? 0
                 : is_forward          ? Panels<R>::size(a.I, width)
                 : a.dinput != nullptr ? Panels<R>::size(width, a.I)
                                       : 0) {}

    Panels<R> panels() const {
        return is_forward ? Panels<R>{packed, a.I, width} : Panels<R>{packed, width, a.I};
    }

    void pack(const Team& team) const {
        const Panels<R> all = panels();
        const S* w = static_cast<const S*>(a.w_ih);
        for (int64_t k = team.begin(all.count()); k < team.end(all.count()); ++k)
            all.pack(k, w, is_forward ? 1 : a.I, is_forward ? a.I : 1);
    }

    // Whether any group is valid at this step.
    bool live(int64_t t, int64_t b) const {
        if (!a.valid) return true;
        for (int64_t n = 0; n < a.N; ++n)
            if (t < a.valid[n * a.B + b]) return true;
        return false;
    }

    // to = init + from @ packed for this thread's share of all rows of (T, B).
    void multiply(const Team& team, const S* from, int64_t from_width, S* to, int64_t to_width,
                  const R* init) const {
        const Panels<R> all = panels();
        const R* a_rows[ROWS];
        R* c_rows[ROWS];
        S* results[ROWS];
        const Array<R> a_wide(SAME ? 0 : ROWS * from_width), c_wide(SAME ? 0 : ROWS * to_width);
        int64_t count = 0;
        const auto flush = [&] {
            product(all, 0, all.count(), count, static_cast<const R* const*>(a_rows), 1,
                    static_cast<R* const*>(c_rows), init ? Init::ROW : Init::ZERO, init);
            for (int64_t i = 0; i < count; ++i) {
                if (is_forward && a.x_gain) normalise_row(c_rows[i], (results[i] - to) / to_width);
                if (!SAME) copy<R>(results[i], c_rows[i], to_width);
            }
            count = 0;
        };
        const int64_t rows = a.T * a.B;
        for (int64_t row = team.begin(rows); row < team.end(rows); ++row) {
            S* const result = to + row * to_width;
            if (!live(row / a.B, row % a.B)) {
                if (!is_forward) std::memset(result, 0, to_width * sizeof(S));
                continue;
            }
            const S* const source = from + row * from_width;
            if constexpr (SAME) {
                a_rows[count] = source;
                c_rows[count] = result;
            } else {
                a_rows[count] = a_wide + count * from_width;
                c_rows[count] = c_wide + count * to_width;
                copy<R>(a_wide + count * from_width, source, from_width);
            }
            results[count] = result;
            if (++count == ROWS) flush();
        }
        if (count > 0) flush();
    }

    // Normalises the input's part of a row (t, b), of each group by itself.
    void normalise_row(R* v, int64_t row) const {
        R* const scales = static_cast<R*>(a.x_scales) + row * a.N * gates;
        for (int64_t n = 0; n < a.N; ++n)
            normalise_gates(a, v + n * gates * a.H, scales + n * gates, 0, int(gates));
    }

    void forward(const Team& team) const {
        const Array<R> bias(width);
        bias.zero(width);
        if (a.b_ih && !a.x_gain)
            copy<R>(bias.data, static_cast<const S*>(a.b_ih), width);
        const int64_t group = width / a.N, summed = a.summed * a.H;
        // The products that are added to x come without their bias.
        for (int64_t n = 0; a.b && n < a.N; ++n)
            for (int64_t j = 0; j < summed; j += LANES<R>) {
                const Part<R> part(summed - j);
                R* const sum = bias + n * group + j;
                store(sum, load(sum, part) + load(static_cast<const S*>(a.b) + n * group + j, part),
                      part);
            }
        multiply(team, static_cast<const S*>(a.input), a.I,
                 static_cast<S*>(const_cast<void*>(a.x)), width,
                 static_cast<const R*>(bias.data));
    }

    void backward(const Team& team) const {
        const S* dx = static_cast<const S*>(a.dx);
        if (a.dinput) multiply(team, dx, width, static_cast<S*>(a.dinput), a.I, nullptr);
        const int64_t begin = team.begin(width), end = team.end(width);
        if (!a.dw_ih || begin == end) return;
        OuterProduct<S> sum(begin, end, a.I, static_cast<S*>(a.dw_ih) + begin * a.I);
        for (int64_t row = 0; row < a.T * a.B; ++row) {
            if (!live(row / a.B, row % a.B)) continue;
            sum.take(dx + row * width, 0, width);
            sum.add(static_cast<const S*>(a.input) + row * a.I);
        }
        sum.finish(a.db_ih && !a.x_gain ? static_cast<S*>(a.db_ih) + begin : nullptr);
    }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
