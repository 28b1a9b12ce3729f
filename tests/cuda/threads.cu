// Threads of a block, and what they do wrong.
#include "cuda/device.h"

namespace rnnkit {

// to[lane] += what the lanes at every power of two have.
KERNEL(256, 1) void shuffle_all(const int* from, int* to) {
    const int at = block_x() * threads() + thread();
    for (int mask = 1; mask < 32; mask *= 2) to[at] += mask * shuffle_xor(from[at], mask);
}

// Each number becomes the sum of its neighbours in a ring, which a block is or a warp, again and
// again. Two barriers a step are needed, of which one may be missing.
enum Missing { NONE, BEFORE, AFTER };

template <bool WARP> DEVICE void wait_here() {
    if constexpr (WARP)
        synchronise_warp();
    else
        synchronise();
}

template <bool WARP> KERNEL(256, 1) void ring(unsigned* values, int steps, int missing) {
    const int count = WARP ? 32 : threads(), at = thread() % count;
    unsigned* const own = values + block_x() * threads() + thread();
    unsigned* const here = shared_memory<unsigned>() + (WARP ? warp() * 32 : 0);
    for (int step = 0; step < steps; ++step) {
        here[at] = *own;
        if (missing != BEFORE) wait_here<WARP>();
        *own = here[(at + 1) % count] + here[(at + count - 1) % count];
        if (missing != AFTER) wait_here<WARP>();
    }
}

// Who was here last, in an order that nothing but the scheduler gives.
KERNEL(256, 1) void race(int* last) {
    synchronise();
    *last = thread();
}

enum Fault { HALF_WAIT, RETURNED, MIXED, NOBODY_ADDS, PAST_THE_END, NOBODY_WROTE };

KERNEL(64, 1) void fault(unsigned* flag, int which) {
    unsigned* const memory = shared_memory<unsigned>();
    if (which == HALF_WAIT && warp() == 0) {
        synchronise();
    } else if (which == HALF_WAIT && lane() < 16) {
        synchronise_warp();
    } else if (which == HALF_WAIT) {
        while (true) synchronise();
    } else if (which == RETURNED && thread() > 0) {
        synchronise();
    } else if (which == MIXED) {
        if (lane() == 3)
            synchronise_warp();
        else
            flag[0] = shuffle_xor(lane(), 1);
    } else if (which == NOBODY_ADDS) {
        if (thread() == 0)
            while (load_acquire(flag) == 0) pause();
        synchronise();
    } else if (which == PAST_THE_END && thread() == 0) {
        memory[64] = 0;
    } else if (which == NOBODY_WROTE && thread() == 0) {
        flag[0] = memory[63];
    }
}

template <bool WARP> int launch_ring(unsigned* values, int steps, int missing) {
    Launch how;
    how.x = 8;
    how.threads = 256;
    how.shared_bytes = 256 * sizeof(unsigned);
    return launch(ring<WARP>, how, values, steps, missing);
}

}  // namespace rnnkit

using namespace rnnkit;

extern "C" {

int shuffles(const int* from, int* to, int blocks) {
    Launch how;
    how.x = blocks;
    how.threads = 256;
    return launch(shuffle_all, how, from, to);
}

int block_ring(unsigned* values, int steps, int missing) {
    return launch_ring<false>(values, steps, missing);
}
int warp_ring(unsigned* values, int steps, int missing) {
    return launch_ring<true>(values, steps, missing);
}

int races(int* last) {
    Launch how;
    how.threads = 256;
    return launch(race, how, last);
}

int faults(unsigned* flag, int which) {
    Launch how;
    how.threads = 64;
    how.shared_bytes = 64 * sizeof(unsigned);
    return launch(fault, how, flag, which);
}

int refused(int threads, int shared_bytes, int cluster) {
    Launch how;
    how.threads = threads;
    how.shared_bytes = shared_bytes;
    how.cluster = cluster;
    return launch(race, how, nullptr);
}

const char* described(int code) { return launch_error(code); }

}
