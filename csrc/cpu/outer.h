// Sums of outer products: the gradients of weights.
#pragma once
#include "product.h"

namespace rnnkit {
namespace RNNKIT_ISA {

// d.T @ q over all rows that are added, for columns [begin, end) of d, and the sum of d.
template <class S> struct OuterProduct {
    using R = Real<S>;
    using V = Vector<R>;
    // Rows of one product: its packed operands stay in the nearest caches.
    static constexpr int64_t CHUNK = 128;
    // Columns of d that are packed together, for as few pages as can be: whole vectors and tiles.
    static constexpr int64_t GROUP = 48;
    static_assert(GROUP % LANES<R> == 0 && GROUP % MOST_ROWS == 0, "");
    static constexpr bool SAME = sizeof(S) == sizeof(R);

    int64_t begin, end, count, columns, filled = 0;
    bool first = true;
    S* result;
    Array<R> q, d, line, total, sums;
    Array<const R*> from;
    Array<R*> to;

    // result: (count, columns), dense.
    OuterProduct(int64_t begin, int64_t end, int64_t columns, S* result)
        : begin(begin), end(end), count(end - begin), columns(columns), result(result),
          q(Panels<R>::size(CHUNK, columns)), d(CHUNK * (count + GROUP)), line(columns), total(count),
          sums(SAME ? 0 : count * columns), from(count), to(count) {
        for (int64_t i = 0; i < count; ++i) {
            from[i] = place(i);
            to[i] = (SAME ? reinterpret_cast<R*>(result) : sums.data) + i * columns;
        }
        total.zero(count);
    }

    // Takes columns [first, last) of d's next row, of those in [begin, end), from `source`, where
    // column `first` stands.
    template <class From> void take(const From* source, int64_t first, int64_t last) {
        const int64_t low = first > begin ? first : begin, high = last < end ? last : end;
        for (int64_t j = low; j < high;) {
            const int64_t at = j - begin, left = GROUP - at % GROUP;
            const Part<R> part(high - j < left ? high - j : left);
            const V v = load(source + (j - first), part);
            store(place(at) + filled * GROUP, v, part);
            store(total + at, load(total + at, part) + v, part);
            j += part.count;
        }
    }

    // The first row's column i of d, as it is packed.
    R* place(int64_t i) const { return d + i / GROUP * GROUP * CHUNK + i % GROUP; }

    // Adds the row that was taken, with this row of q.
    template <class From> void add(const From* source) {
        const Panels<R> panels = {q, CHUNK, columns};
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
            const int64_t left = panels.columns(panel);
            const int64_t width = Panels<R>::vectors(left) * LANES<R>;
            for (int64_t j = 0; j < width; j += LANES<R>)
                store_whole(panels.at(panel) + filled * width + j,
                            load(source + panel * PANEL<R> + j, Part<R>(left - j)));
        }
        if (++filled == CHUNK) flush();
    }

    void flush() {
        const Panels<R> panels = {q, filled, columns, CHUNK};
        product(panels, 0, panels.count(), count, static_cast<const R* const*>(from.data), GROUP,
                static_cast<R* const*>(to.data), first ? Init::ZERO : Init::SUM,
                static_cast<const R*>(nullptr));
        first = false;
        filled = 0;
    }

    // The sum of d goes to `bias`, unless it is null.
    void finish(S* bias) {
        if (filled > 0 || first) flush();
        if (!SAME) copy<R>(result, sums.data, count * columns);
        if (bias) copy<R>(bias, total.data, count);
    }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
