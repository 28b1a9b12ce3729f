// What the library asks of the kernels.
#pragma once
#include "arguments.h"

namespace rnnkit {

struct Kernel {
    int64_t columns;  // rows of a chunk
    int64_t (*pitch)(int64_t H);
    int64_t (*shared_bytes)(int64_t H, int64_t chunks);
    int (*launch)(const Arguments&, const Form&);
};

// The persistent forms of one cell for one kind of product: of one or two tiles of units, forward or
// backward, through L2 or within a cluster.
struct Entry {
    const char* cell;
    Kernel kernels[2][2][2];
};

struct Entries {
    const Entry* first;
    int count;
};

}  // namespace rnnkit
