// All of CUDA that kernels use, under names of our own, so that one source runs on GPUs, compiled
// by nvcc, and on CPUs, compiled by any C++ compiler with the emulation in tests/cuda.
//
//   KERNEL(threads, blocks) void f(...)   at most so many threads a block, and registers for at
//                                         least so many blocks a multiprocessor
//   DEVICE                                before what kernels call; HOST_DEVICE, of cell.h, before
//                                         what hosts call, too
//
//   thread(), threads()                   the thread in its block; how many the block has
//   lane(), warp()                        the thread in its warp of 32; the warp in the block
//   block_x(), block_y()                  the block in the grid
//   blocks_x(), blocks_y()                how many the grid has
//   shared_memory<T>()                    the block's Launch::shared_bytes, aligned to 16 bytes
//
//   synchronise(), synchronise_warp()     a block's, a warp's threads wait for each other
//   shuffle_xor(value, mask)              the value of lane() ^ mask
//   mma<S>(c, a, b), round_tf32(value)    c += a @ b by a warp: see instructions.h
//   load_acquire(flag), pause()           between blocks: see instructions.h
//   add_release(flag, count), load_l2(from), prefetch(from)
//   settled(v), here(number)              v as it is: see instructions.h
//
//   HAS_CLUSTERS                          whether the GPU that is compiled for can run what follows
//   cluster_rank(), cluster_synchronise(), peer_address(own, rank)
//   barrier_init(barrier, arrivals), barrier_expect(barrier, bytes), barrier_wait(barrier, parity)
//   store_async(address, value, barrier)
//   load_received(from)                   between blocks of a cluster: see cluster.h
//
//   launch(kernel, how, arguments...)     0, or what launch_error(code) describes
//   clusters(kernel, how)                 how many clusters of such launches run at once
#pragma once
#include <cstdint>
#include <type_traits>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "../cells/cell.h"

namespace rnnkit {

struct Launch {
    int x = 1, y = 1;          // blocks
    int threads = 32;          // of each block: whole warps
    int shared_bytes = 0;      // of each block
    int cluster = 1;           // neighbours along x that reach each other's shared memory
    bool cooperative = false;  // all blocks must run at once, since they wait for each other
    void* stream = nullptr;
};

// How deep a product mma<S> computes: whatever the type, 32 bytes of a row.
template <class S> constexpr int MMA_DEPTH = 32 / sizeof(S);

}  // namespace rnnkit

#ifdef __CUDACC__
#include "cluster.h"
#include "instructions.h"
#include "launch.h"
#else
#include "emulation.h"
#endif
