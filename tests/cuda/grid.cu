// Blocks that wait for each other by flags, as the persistent kernels do.
#include "cuda/device.h"

namespace rnnkit {

enum Missing { NONE, WAIT, SYNCHRONISE, BUFFER };

// Each thread's words become the sums of what they were and of what two other blocks had, again and
// again. After the words come two buffers, of which a step overwrites that of the step before last:
// all have read it who have added to the flag in the last step.
KERNEL(64, 1) void exchange(uint4* words, unsigned* flag, int steps, int missing) {
    const int blocks = blocks_x() * blocks_y(), block = block_y() * blocks_x() + block_x();
    uint4* const own = shared_memory<uint4>();
    own[thread()] = words[block * threads() + thread()];
    for (int step = 0; step < steps; ++step) {
        uint4* const buffer = words + (missing == BUFFER ? 1 : 1 + step % 2) * blocks * threads();
        buffer[block * threads() + thread()] = own[thread()];
        if (missing != SYNCHRONISE) synchronise();
        if (thread() == 0) {
            add_release(flag, 1);
            while (missing != WAIT && load_acquire(flag) < unsigned((step + 1) * blocks)) pause();
        }
        synchronise();
        for (int way = 1; way < 3; ++way) {
            const int other = (block + way * (blocks / 3)) % blocks;
            const uint4 found = load_l2(buffer + other * threads() + thread());
            uint4& sum = own[thread()];
            sum = {sum.x + found.x, sum.y + found.y, sum.z + found.z, sum.w + found.w};
        }
    }
    words[block * threads() + thread()] = own[thread()];
}

// Each block reads what the next one stored, and waits for that one alone, which may be ahead of it
// by as many steps as there are buffers. The last block waits for none.
KERNEL(64, 1) void follow(uint4* words, unsigned* flags, uint4* found, int steps, int buffers) {
    const int block = block_x(), next = block + 1;
    for (int step = 0; step < steps; ++step) {
        uint4* const buffer = words + step % buffers * blocks_x() * threads();
        const unsigned value = unsigned(step * blocks_x() + block);
        buffer[block * threads() + thread()] = {value, value, value, value};
        synchronise();
        if (thread() == 0) {
            add_release(flags + block, 1);
            while (next < blocks_x() && load_acquire(flags + next) <= unsigned(step)) pause();
        }
        synchronise();
        if (next < blocks_x())
            found[(step * blocks_x() + block) * threads() + thread()] =
                load_l2(buffer + next * threads() + thread());
    }
}

}  // namespace rnnkit

using namespace rnnkit;

extern "C" {

int exchanges(uint4* words, unsigned* flag, int x, int y, int steps, int missing) {
    Launch how;
    how.x = x;
    how.y = y;
    how.threads = 64;
    how.shared_bytes = how.threads * sizeof(uint4);
    how.cooperative = true;
    return launch(exchange, how, words, flag, steps, missing);
}

int follows(uint4* words, unsigned* flags, uint4* found, int blocks, int steps, int buffers) {
    Launch how;
    how.x = blocks;
    how.threads = 64;
    how.cooperative = true;
    return launch(follow, how, words, flags, found, steps, buffers);
}

}
