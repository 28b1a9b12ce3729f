// What every GPU has of device.h.
#pragma once
#include "device.h"

#define KERNEL(...) __global__ __launch_bounds__(__VA_ARGS__)
#define DEVICE __device__ __forceinline__

namespace rnnkit {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool HAS_CLUSTERS = false;
#else
constexpr bool HAS_CLUSTERS = true;
#endif

DEVICE int thread() { return int(threadIdx.x); }
DEVICE int threads() { return int(blockDim.x); }
DEVICE int lane() { return thread() % 32; }
DEVICE int warp() { return thread() / 32; }
DEVICE int block_x() { return int(blockIdx.x); }
DEVICE int block_y() { return int(blockIdx.y); }
DEVICE int blocks_x() { return int(gridDim.x); }
DEVICE int blocks_y() { return int(gridDim.y); }

template <class T> DEVICE T* shared_memory() {
    extern __shared__ uint4 rnnkit_shared_memory[];
    return reinterpret_cast<T*>(rnnkit_shared_memory);
}

DEVICE void synchronise() { __syncthreads(); }
DEVICE void synchronise_warp() { __syncwarp(); }

template <class T> DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

#define RNNKIT_MMA(shape, type)                                                    \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 "   \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// c (16, 8) += a (16, MMA_DEPTH) @ b (MMA_DEPTH, 8), of which each lane holds a fragment. With
// i = lane() / 4, j = lane() % 4, and the words of a's rows and b's columns numbered 0 to 7:
//
//   c   (i, 2j), (i, 2j + 1), (i + 8, 2j), (i + 8, 2j + 1)
//   a   word j of row i, of row i + 8; word j + 4 of row i, of row i + 8
//   b   word j of column i, word j + 4
//
// A word is two numbers of 16 bits, the first in the lower half, or one float, of which TF32 lacks
// the lower 13 bits: they are not seen.
template <class S>
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    static_assert(sizeof(S) == 2 || std::is_same_v<S, float>, "");
    if constexpr (std::is_same_v<S, __nv_bfloat16>)
        RNNKIT_MMA("m16n8k16", "bf16");
    else if constexpr (std::is_same_v<S, __half>)
        RNNKIT_MMA("m16n8k16", "f16");
    else
        RNNKIT_MMA("m16n8k8", "tf32");
}

// To the nearest number that TF32 has; of two as near, the larger one in size. The conversion may
// leave anything in the bits that mma does not see, and what was rounded off is of interest too.
DEVICE float round_tf32(float value) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return __uint_as_float(bits & ~0x1fffu);
}

// Between blocks. A producer's threads store data, synchronise(), and one of them calls
// add_release(). One lane of each warp of a consumer calls load_acquire() until the flag has been
// added to often enough, synchronise_warp(), and the warp's lanes load the data. Why they see it, by PTX's memory
// model:
//
// - A store precedes its thread's bar.sync in program order; the bar.sync of two threads
//   synchronise. Base causality order is the transitive closure of both, so that the red follows
//   the stores of all the block's threads: a release is of all that precedes it, whoever did it.
// - The red and the load are strong, of scope .gpu: morally strong. The load observes the red,
//   even if it reads the sum of a later one, since each red, being an atomic, observes the one
//   before; nothing but reds may write to the flag. Thus the release pattern that the red is
//   synchronises with the acquire pattern that the load is: the first acts as a fence.acq_rel.gpu
//   before it, the second as one after it, and there is no need for another.
// - From the load to bar.warp.sync to the loads of the data, the order goes on as on the other side.
//
// The stores then precede the loads in causality order, and by the axiom of causality no load sees
// what was there before. The same order, begun at loads, makes it right to overwrite data once all
// its readers have called add_release(), after a synchronise().
DEVICE unsigned load_acquire(const unsigned* flag) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(value) : "l"(__cvta_generic_to_global(flag)) : "memory");
    return value;
}

DEVICE void add_release(unsigned* flag, unsigned count) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;"
                 :: "l"(__cvta_generic_to_global(flag)), "r"(count) : "memory");
}

// Data of other blocks. Past an acquire a plain load would do, since the multiprocessor forgets its
// L1 there; but the compiler may make a plain load an ld.global.nc, if it sees no store to the
// place, and those are outside the model. That this one passes L1 by is a hint to leave the room to
// others. __ldcg does not tell the compiler that it depends on memory, and could be moved.
DEVICE uint4 load_l2(const uint4* from) {
    uint4 value;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(__cvta_generic_to_global(from)) : "memory");
    return value;
}

// A number as it is, which the compiler would find anew at every use.
DEVICE int settled(int number) {
    asm("" : "+r"(number));
    return number;
}

// A number of which nothing is to be made before it is needed: before a loop it would take registers.
DEVICE int here(int number) {
    asm volatile("" : "+r"(number));
    return number;
}

// A global address as it is, of which others are to be made. The compiler would make each of them of
// all that this one was made of, in as many instructions.
template <class T> DEVICE T* settled(T* address) {
    asm("" : "+l"(address));
    __builtin_assume(__isGlobal(address));
    return address;
}

// Has the L2 bring what will be loaded, some steps of work later.
DEVICE void prefetch(const void* from) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(__cvta_generic_to_global(from)));
}

// Between looks at a flag: leaves the multiprocessor and the L2 to those who work.
DEVICE void pause() { __nanosleep(20); }

}  // namespace rnnkit
