// What device.h has for clusters: blocks that store into each other's shared memory, from sm_90 on.
//
// A barrier lies in shared memory. Its phase, 0 at first, changes when all arrivals that it was
// made for and all bytes that they expect have come. One thread of each block makes the barrier,
// then comes cluster_synchronise(); for each phase one thread calls barrier_expect(), peers
// store_async(), and all who want the data barrier_wait() for the parity of the phase.
//
// By the memory model a store_async() is a weak store, and what it adds to the barrier a release
// at cluster scope, hence the scope of the acquire in barrier_wait(). What one thread sees after
// its wait is not what others see: each must wait, or synchronise() with one that did. A block must
// not return before all that is stored into it has come.
#pragma once
#include "device.h"
#include "instructions.h"

// Older GPUs run no kernel that comes here, but it may be in a program that is compiled for them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define RNNKIT_SM_90(...) __trap()
#else
#define RNNKIT_SM_90(...) __VA_ARGS__
#endif

namespace rnnkit {

// Of the block in its cluster.
DEVICE int cluster_rank() {
    int rank = 0;
    RNNKIT_SM_90(asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)));
    return rank;
}

// All threads of a cluster wait for each other; what they stored in any memory is seen.
DEVICE void cluster_synchronise() {
    RNNKIT_SM_90(asm volatile("barrier.cluster.arrive.release;\n"
                              "barrier.cluster.wait.acquire;" ::: "memory"));
}

DEVICE uint32_t shared_address(const void* own) { return uint32_t(__cvta_generic_to_shared(own)); }

// Where the block of that rank has what this one has at `own`, in its shared memory.
DEVICE uint32_t peer_address(const void* own, int rank) {
    uint32_t address = 0;
    RNNKIT_SM_90(asm("mapa.shared::cluster.u32 %0, %1, %2;"
                     : "=r"(address) : "r"(shared_address(own)), "r"(rank)));
    return address;
}

DEVICE void barrier_init(uint64_t* barrier, int arrivals) {
    RNNKIT_SM_90(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n"
                              "fence.mbarrier_init.release.cluster;"
                              :: "r"(shared_address(barrier)), "r"(arrivals) : "memory"));
}

// Arrives, and adds to the bytes that the phase waits for.
DEVICE void barrier_expect(uint64_t* barrier, int bytes) {
    RNNKIT_SM_90(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                              :: "r"(shared_address(barrier)), "r"(bytes) : "memory"));
}

// Until the phase of this parity is over.
DEVICE void barrier_wait(uint64_t* barrier, int parity) {
    int over = 0;
    while (!over)
        RNNKIT_SM_90(asm volatile(
            "{\n"
            ".reg .pred over;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%1], %2;\n"
            "selp.b32 %0, 1, 0, over;\n"
            "}"
            : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory"));
}

// What peers have stored.
DEVICE uint4 load_received(const uint4* from) { return *from; }

#define RNNKIT_STORE_ASYNC "st.async.shared::cluster.mbarrier::complete_tx::bytes."

// Stores into a peer, sometime; then the bytes have come to the barrier, which is the same peer's.
DEVICE void store_async(uint32_t address, uint32_t value, uint32_t barrier) {
    RNNKIT_SM_90(asm volatile(RNNKIT_STORE_ASYNC "b32 [%0], %1, [%2];"
                              :: "r"(address), "r"(value), "r"(barrier) : "memory"));
}

DEVICE void store_async(uint32_t address, uint2 value, uint32_t barrier) {
    RNNKIT_SM_90(asm volatile(RNNKIT_STORE_ASYNC "v2.b32 [%0], {%1, %2}, [%3];"
                              :: "r"(address), "r"(value.x), "r"(value.y), "r"(barrier)
                              : "memory"));
}

DEVICE void store_async(uint32_t address, uint4 value, uint32_t barrier) {
    RNNKIT_SM_90(asm volatile(RNNKIT_STORE_ASYNC "v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
                              :: "r"(address), "r"(value.x), "r"(value.y), "r"(value.z),
                                 "r"(value.w), "r"(barrier)
                              : "memory"));
}

}  // namespace rnnkit
