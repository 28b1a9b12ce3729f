// What a launch brings beside the arguments of the scan. rnnkit/cuda/arguments.py fills it in this
// order, eight bytes a field.
#pragma once
#include "../arguments.h"

namespace rnnkit {

// Of the arguments, m, lengths and resets come with strides of 32 bits, the others dense.
struct Form {
    int64_t blocks;   // that share a group's units
    int64_t slices;   // that share the batch, each a group of blocks that waits for itself only
    int64_t chunks;   // of a slice, which take turns: while one is handed over, another is computed
    int64_t plane;    // B * N * H: the units of a step
    // Backward: the products' own gradient where it is not dx.
    void* dr;
    // Two buffers for what blocks hand over, zeroed: (2, N, slices * chunks * COLUMNS, pitch bytes);
    // how often each chunk's was, zeroed: (N, slices, chunks), 128 bytes apart.
    char* exchange;
    unsigned* arrivals;
    int64_t pitch;
    void* stream;
};

}  // namespace rnnkit
