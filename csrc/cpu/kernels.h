// What the library asks of the kernels, and gives them to run on.
#pragma once
#include "../arguments.h"

namespace rnnkit {

// Runs work(begin, end, context) over parts of [begin, end), as torch_parallel_for does.
using Work = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Work, void* context);

struct Pool {
    ParallelFor parallel_for;
    int64_t threads;
};

// One cell's functions for one storage type and one instruction set.
struct Kernels {
    int64_t shared;
    void (*scan)(const Arguments&, const Pool&);
    void (*scan_backward)(const Arguments&, const Pool&);
    void (*step)(const Arguments&, const Pool&);
};

}  // namespace rnnkit
