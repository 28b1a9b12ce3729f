// What the library asks of the kernels.
#pragma once
#include "exchange.h"

namespace rnnkit {

struct Kernel {
    int64_t columns;  // rows of a chunk
    int64_t (*pitch)(int64_t H);
    int64_t (*shared_bytes)(int64_t H, int64_t chunks);
    int (*launch)(const Arguments&, const Form&);
};

// The forms of a persistent kernel, as rnnkit/cuda/plan.py has them: tiles of units of a block, and
// how these are handed over.
struct Shape {
    int unit_tiles;
    Via via;
};
constexpr Shape SHAPES[] = {{1, Via::L2},      {2, Via::L2},    {1, Via::CLUSTER},
                            {2, Via::CLUSTER}, {4, Via::BLOCK}, {8, Via::BLOCK}};
constexpr int SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES;

// Those of one cell for one kind of product, forward and backward. Of the last two only full
// precision's exist, of cells without a norm.
struct Entry {
    const char* cell;
    Kernel kernels[SHAPE_COUNT][2];
};

struct Entries {
    const Entry* first;
    int count;
};

}  // namespace rnnkit
