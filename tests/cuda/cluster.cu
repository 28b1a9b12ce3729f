// Blocks of a cluster that store into each other's shared memory.
#include "cuda/device.h"

namespace rnnkit {

enum Missing { NONE, WAIT, SYNCHRONISE, SECOND_BUFFER, LAST_WAIT };

DEVICE void add(uint32_t& sum, uint32_t value) { sum += value; }
DEVICE void add(uint2& sum, uint2 value) { sum = {sum.x + value.x, sum.y + value.y}; }
DEVICE void add(uint4& sum, uint4 value) {
    sum = {sum.x + value.x, sum.y + value.y, sum.z + value.z, sum.w + value.w};
}

// Each thread's words become (its rank + 1) times what they were, summed over the same threads of
// all blocks of its cluster, again and again. A buffer is free for the next step but one once all
// have sent their words of the next step, since they had read it before.
template <class W> KERNEL(64, 1) void all_to_all(W* words, int cluster, int steps, int missing) {
    auto* const barriers = shared_memory<uint64_t>();
    W* const buffers = reinterpret_cast<W*>(barriers + 2);
    W& own = words[block_x() * threads() + thread()];
    if (thread() < 2) barrier_init(barriers + thread(), 1);
    if (missing != SYNCHRONISE) cluster_synchronise();
    for (int step = 0; step < steps; ++step) {
        const int use = missing == SECOND_BUFFER ? 0 : step % 2;
        W* const buffer = buffers + use * cluster * threads();
        const int bytes = int(sizeof(W)) * cluster * threads();
        if (thread() == 0) barrier_expect(barriers + step % 2, bytes);
        W scaled = {};
        for (int k = 0; k <= cluster_rank(); ++k) add(scaled, own);
        for (int rank = 0; rank < cluster; ++rank)
            store_async(peer_address(buffer + cluster_rank() * threads() + thread(), rank), scaled,
                        peer_address(barriers + step % 2, rank));
        if (missing == LAST_WAIT && step == steps - 1) return;
        if (missing != WAIT) barrier_wait(barriers + step % 2, step / 2 % 2);
        W sum = {};
        for (int rank = 0; rank < cluster; ++rank) add(sum, buffer[rank * threads() + thread()]);
        own = sum;
    }
}

template <class W>
int launch_all_to_all(W* words, int blocks, int cluster, int steps, int missing) {
    Launch how;
    how.x = blocks;
    how.threads = 64;
    how.cluster = cluster;
    how.shared_bytes = 2 * sizeof(uint64_t) + 2 * cluster * how.threads * sizeof(W);
    return launch(all_to_all<W>, how, words, cluster, steps, missing);
}

}  // namespace rnnkit

using namespace rnnkit;

extern "C" {

int all_to_all_1(uint32_t* words, int blocks, int cluster, int steps, int missing) {
    return launch_all_to_all(words, blocks, cluster, steps, missing);
}
int all_to_all_2(uint2* words, int blocks, int cluster, int steps, int missing) {
    return launch_all_to_all(words, blocks, cluster, steps, missing);
}
int all_to_all_4(uint4* words, int blocks, int cluster, int steps, int missing) {
    return launch_all_to_all(words, blocks, cluster, steps, missing);
}

}
