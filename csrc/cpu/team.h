// The threads of one parallel region, and where they wait for each other.
#pragma once
#include <sched.h>
#include "kernels.h"

namespace rnnkit {
namespace RNNKIT_ISA {

struct Barrier {
    int64_t arrived = 0, round = 0;
};

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

struct Team {
    int64_t index, size;
    Barrier* barrier;

    // What any thread wrote before it, every thread sees after it.
    void wait() const {
        if (size == 1) return;
        const int64_t round = __atomic_load_n(&barrier->round, __ATOMIC_RELAXED);
        if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == size) {
            __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&barrier->round, round + 1, __ATOMIC_RELEASE);
            return;
        }
        for (int spins = 0; __atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE) == round; ++spins)
            spins < 4096 ? pause() : void(sched_yield());
    }

    // This thread's share of count items that are alike.
    int64_t begin(int64_t count) const { return count * index / size; }
    int64_t end(int64_t count) const { return count * (index + 1) / size; }
};

// Runs job(context, team) on up to `threads` threads at once.
//
// The pool may give fewer threads than parts, each then several parts in one call; only the call
// that begins at part 0 knows how many a call gets, and tells the others.
struct Region {
    void (*job)(const void*, const Team&);
    const void* context;
    int64_t parts;
    int64_t chunk;
    Barrier barrier;
};

inline void enter(int64_t begin, int64_t end, void* opaque) {
    Region& region = *static_cast<Region*>(opaque);
    if (begin == 0) __atomic_store_n(&region.chunk, end, __ATOMIC_RELEASE);
    int64_t chunk;
    while ((chunk = __atomic_load_n(&region.chunk, __ATOMIC_ACQUIRE)) == 0) pause();
    const Team team = {begin / chunk, (region.parts + chunk - 1) / chunk, &region.barrier};
    region.job(region.context, team);
}

template <class Job> inline void run(const Pool& pool, int64_t threads, const Job& job) {
    const auto call = [](const void* context, const Team& team) {
        (*static_cast<const Job*>(context))(team);
    };
    Region region = {call, &job, threads, 0, {}};
    if (threads == 1)
        enter(0, 1, &region);
    else
        pool.parallel_for(0, threads, 1, enter, &region);
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
