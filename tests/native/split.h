// How the kernels of a test share their work among threads.
#pragma once
#include <atomic>

namespace test {

// The split, a rnnkit::Split, that kernels.cpp takes for all of a call's threads. With NONE the
// library chooses, and what it chose for several threads is noted in `seen`, as bits.
constexpr int NONE = -1;
extern std::atomic<int> split, seen;

}  // namespace test
