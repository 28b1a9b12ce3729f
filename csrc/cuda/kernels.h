// What the library asks of the kernels.
#pragma once
#include "arguments.h"

namespace rnnkit {

// The persistent form of one cell for one kind of product, tile of units and direction.
struct Entry {
    const char* cell;
    int64_t unit_tiles, backward;
    int64_t columns;  // rows of a chunk
    int64_t (*pitch)(int64_t H);
    int64_t (*shared_bytes)(int64_t H, int64_t chunks);
    int (*launch)(const Arguments&, const Form&);
};

struct Entries {
    const Entry* first;
    int count;
};

}  // namespace rnnkit
