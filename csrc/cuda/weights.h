// A block's weights of the gates that one product of a step serves.
#pragma once
#include "arguments.h"
#include "product.h"

namespace rnnkit {

// Of COUNT gates from FIRST on. Forward the product's rows are each gate's units; backward they are
// the units, and the gates are part of the inner dimension.
template <class C, bool BACKWARD, int FIRST_, int COUNT_> struct GateWeights {
    static constexpr int FIRST = FIRST_, COUNT = COUNT_;
    static constexpr int ROW_GATES = BACKWARD ? 1 : COUNT;

    // The units of a gate in the inner dimension, with those that fill up its last 16 bytes.
    HOST_DEVICE static constexpr int64_t padded(int64_t H) { return (H + 7) / 8 * 8; }
    HOST_DEVICE static constexpr int64_t depth(int64_t H) {
        return padded(H) * (BACKWARD ? COUNT : 1);
    }

    // Of a unit of a group n, neighbours in the inner dimension, from the k-th on, zero where there
    // is none. They are of one gate, forward of the g-th.
    template <class S, int SIZE>
    DEVICE static void load(const Arguments& a, int n, int g, int64_t unit, int k, S (&v)[SIZE]) {
        static_assert(8 % SIZE == 0, "of one gate");
        const int64_t H = a.H;
        const int gate_width = int(padded(H));
        int64_t gate = BACKWARD ? 0 : g;
        int fed = k;
        for (int i = 1; i < (BACKWARD ? COUNT : 1); ++i)
            if (k >= i * gate_width) ++gate, fed -= gate_width;
        const int exist = unit < H && fed < H ? int(H - fed) : 0;
        const int64_t row = (n * C::gates + FIRST + gate) * H;
        const int64_t first = BACKWARD ? (row + fed) * H + unit : (row + unit) * H + fed;
        const S* const from = static_cast<const S*>(a.w) + first;
#pragma unroll
        for (int i = 0; i < SIZE; ++i)
            v[i] = i < exist ? from[i * (BACKWARD ? H : 1)] : narrow<S>(0);
    }
};

// Those of a block that shares a group's units with others, in tiles.
template <class Kind, class C, int UNIT_TILES, bool BACKWARD, int FIRST, int COUNT>
struct TileWeights : GateWeights<C, BACKWARD, FIRST, COUNT> {
    using Base = GateWeights<C, BACKWARD, FIRST, COUNT>;
    static constexpr int ROW_GATES = Base::ROW_GATES, ROW_TILES = UNIT_TILES * ROW_GATES;
    // So many that every thread has a unit of a row.
    static constexpr int COLUMN_TILES = UNIT_TILES == 1 && Kind::sums == 4 ? 2 : 1;
    // A product has as large a share of the registers as of the gates, in whole batches.
    static constexpr int HELD
        = Kind::registers * COUNT / C::gates / 8 / ROW_TILES / Kind::batch * Kind::batch;
    using Product = rnnkit::Product<Kind, ROW_TILES, COLUMN_TILES, HELD, ROW_GATES>;
    static constexpr int COLUMNS = Product::COLUMNS, SUMS = Product::SUMS;
    using Parts = typename Product::Parts;

    Product product;

    // Of a row of what is handed over for the product.
    HOST_DEVICE static int64_t bytes(int64_t H) { return Product::row_bytes(Base::depth(H)); }
    HOST_DEVICE static int64_t shared_bytes(int64_t H) {
        return Product::shared_bytes(Base::depth(H));
    }

    // Of a group n, those of the block's units for a row of the tiles.
    DEVICE static auto weight(const Arguments& a, int n, int first_unit) {
        return [=, &a](int row, int k, auto& v) {
            const int g = row / TILE_ROWS % ROW_GATES, tile = row / TILE_ROWS / ROW_GATES;
            Base::load(a, n, g, first_unit + tile * TILE_ROWS + row % TILE_ROWS, k, v);
        };
    }

    DEVICE void bring(int part, const Arguments& a, int n, int first_unit, void* to) {
        product.bring(part, to, Base::depth(a.H), weight(a, n, first_unit));
    }

    template <class Exchange>
    DEVICE void multiply(const char* q, int64_t pitch, float* sums) const {
        product.template multiply<Exchange>(q, pitch, sums);
    }
    DEVICE void clear(float* sums) const { product.clear(sums); }
    template <bool CLEARED>
    DEVICE void sum(float* sums, int unit, int column, float (&total)[ROW_GATES]) const {
        product.template sum<CLEARED>(sums, unit, column, total);
    }
};

// Where there is no second product.
struct NoWeights {
    static constexpr int SUMS = 0;
    struct Parts {
        static constexpr int COUNT = 0;
        static constexpr int64_t BYTES = 0;
    };
    HOST_DEVICE static int64_t bytes(int64_t) { return 0; }
    HOST_DEVICE static int64_t shared_bytes(int64_t) { return 0; }
};

}  // namespace rnnkit
