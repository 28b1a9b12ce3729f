// How the blocks that share a slice hand each other what they found, in rounds, through L2.
//
// In a round every block stores its part and arrives at the chunk's flag; who wants to read the
// others' waits until the flag has counted them all. Since nobody arrives for a round before all
// have arrived for the one before, one flag does for all rounds.
//
// Two buffers do: whoever writes for step k + 1 has seen every block's arrival in a round of step
// k, which comes after that block's last look at step k - 1, in the same buffer.
#pragma once
#include "arguments.h"
#include "device.h"

namespace rnnkit {

struct Exchange {
    const Form& form;

    // A row of a chunk of so many, in what is handed over for a step.
    DEVICE char* row(int step, int chunk, int column, int columns) const {
        const int index = (step % 2 * blocks_y() + block_y()) * int(form.chunks) + chunk;
        return form.exchange + (int64_t(index) * columns + column) * form.pitch;
    }

    DEVICE unsigned* flag(int chunk) const {
        return form.arrivals + block_y() * int(form.chunks) + chunk;
    }

    // All threads of the block have handed over what they had to.
    DEVICE void arrive(int chunk) const {
        synchronise();
        if (thread() == 0) add_release(flag(chunk), 1);
    }

    // Until every block has arrived so often.
    DEVICE void wait(int chunk, int rounds) const {
        const unsigned all = unsigned(rounds) * blocks_x();
        if (thread() == 0)
            while (load_acquire(flag(chunk)) < all) pause();
        synchronise();
    }
};

}  // namespace rnnkit
