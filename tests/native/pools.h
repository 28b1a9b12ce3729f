// What torch_parallel_for does, on threads of its own.
#pragma once
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>
#include "cpu/kernels.h"

namespace test {

// At most so many threads a call, whatever it asks for.
inline std::atomic<int64_t> most_threads{1};

inline int32_t parallel_for(int64_t begin, int64_t end, int64_t grain, rnnkit::Work work,
                            void* context) {
    const int64_t parts = (end - begin + grain - 1) / grain;
    const int64_t threads = std::min<int64_t>(most_threads, parts);
    const int64_t chunk = (end - begin + threads - 1) / threads;
    std::vector<std::thread> others;
    for (int64_t at = begin + chunk; at < end; at += chunk)
        others.emplace_back(work, at, std::min(end, at + chunk), context);
    work(begin, std::min(end, begin + chunk), context);
    for (auto& thread : others) thread.join();
    return 0;
}

// A pool with a fault: two threads do the same part.
inline int32_t parallel_for_twice(int64_t, int64_t end, int64_t, rnnkit::Work work, void* context) {
    std::thread other(work, 0, end, context);
    work(0, end, context);
    other.join();
    return 0;
}

}  // namespace test
