// The persistent scan: one launch for a whole sequence, with all weights on chip.
//
// `form.blocks` blocks share the units of one group for one slice of the batch. Each holds its own
// units' weights, in registers first; in every step it hands the others what their products need of
// its units: h forward, the products' gradient backward. A slice is cut into chunks, and a block
// works on one while another is on its way. No slice waits for what another does. What is handed
// over goes through L2; or within a cluster, which the blocks of a slice are then; or stays within
// the one block that a slice has.
#pragma once
#include "backward.h"
#include "forward.h"

namespace rnnkit {

template <class Kind, class C, int UNIT_TILES, bool BACKWARD, Via VIA>
using Persistent = std::conditional_t<BACKWARD, Backward<Kind, C, UNIT_TILES, VIA>,
                                      Forward<Kind, C, UNIT_TILES, VIA>>;

// How many blocks a multiprocessor has at once.
template <int UNIT_TILES, Via VIA>
constexpr int RESIDENT = VIA == Via::BLOCK && UNIT_TILES == 4 ? 2 : 1;

template <class Kind, class C, int UNIT_TILES, bool BACKWARD, Via VIA>
KERNEL(THREADS, RESIDENT<UNIT_TILES, VIA>)
void persistent(const Arguments a, const Form form, const Layout layout) {
    if constexpr (VIA == Via::CLUSTER && !HAS_CLUSTERS) cluster_rank();  // stops the program
    else Persistent<Kind, C, UNIT_TILES, BACKWARD, VIA>(a, form, layout).run();
}

template <class Kind, class C, int UNIT_TILES, bool BACKWARD, Via VIA>
int launch_persistent(const Arguments& a, const Form& form) {
    using Block = Block<Kind, C, UNIT_TILES, BACKWARD, VIA>;
    Launch how;
    how.x = int(form.blocks);
    how.y = int(form.slices * a.N);
    how.threads = THREADS;
    how.shared_bytes = int(Block::shared_bytes(a.H, form.chunks));
    how.cluster = VIA == Via::CLUSTER ? how.x : 1;
    how.cooperative = VIA == Via::L2;
    how.stream = form.stream;
    const auto kernel = persistent<Kind, C, UNIT_TILES, BACKWARD, VIA>;
    return launch(kernel, how, a, form, Block::layout_of(a));
}

}  // namespace rnnkit
