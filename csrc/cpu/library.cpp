// The library's functions, called from Python: they choose the instruction set, order the rows by
// their lengths, and hand on to the kernels.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>
#include "kernels.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace rnnkit {

using Find = const Kernels* (*)(const char* cell);

#define DECLARE(isa)                                \
    const Kernels* find_##isa##_float(const char*); \
    const Kernels* find_##isa##_double(const char*); \
    const Kernels* find_##isa##_bfloat16(const char*);
DECLARE(baseline)
DECLARE(avx2)
DECLARE(avx512)

// One for each storage type, in the order of rnnkit/native/arguments.py.
struct InstructionSet {
    const char* name;
    Find find[3];
};

#define SET(isa) \
    { #isa, { find_##isa##_float, find_##isa##_double, find_##isa##_bfloat16 } }

// What this build has and this processor runs, the fastest first.
std::vector<InstructionSet> detected() {
    std::vector<InstructionSet> found;
#ifdef RNNKIT_HAS_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back(SET(avx512));
#endif
#ifdef RNNKIT_HAS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found.push_back(SET(avx2));
#endif
    found.push_back(SET(baseline));
    return found;
}

const std::vector<InstructionSet>& usable() {
    static const std::vector<InstructionSet> sets = detected();
    return sets;
}

Pool pool = {nullptr, 1};

// The rows of each group, the longest first, and their lengths; empty without lengths.
struct Plan {
    std::vector<int64_t> order, valid;

    explicit Plan(Arguments& a) {
        if (!a.lengths) return;
        order.resize(a.N * a.B);
        valid.resize(a.N * a.B);
        for (int64_t n = 0; n < a.N; ++n) {
            int64_t* const length = valid.data() + n * a.B;
            int64_t* const rows = order.data() + n * a.B;
            for (int64_t b = 0; b < a.B; ++b)
                length[b] = std::clamp<int64_t>(a.lengths[b * a.lengths_b + n * a.lengths_n], 0, a.T);
            std::iota(rows, rows + a.B, 0);
            std::stable_sort(rows, rows + a.B,
                             [&](int64_t i, int64_t j) { return length[i] > length[j]; });
        }
        a.order = order.data();
        a.valid = valid.data();
    }
};

}  // namespace rnnkit

using namespace rnnkit;

// The sources that this was built from.
EXPORT const char* rnnkit_source() { return RNNKIT_SOURCE; }

EXPORT void rnnkit_start(ParallelFor parallel_for) { pool.parallel_for = parallel_for; }

// The instruction sets that can be chosen, the fastest first; null past the last.
EXPORT const char* rnnkit_instruction_set(int64_t index) {
    return index < int64_t(usable().size()) ? usable()[index].name : nullptr;
}

// A cell's kernels for a storage type and one of the instruction sets; null if there are none.
EXPORT const Kernels* rnnkit_kernels(const char* cell, int64_t storage, int64_t index) {
    return usable()[index].find[storage](cell);
}

// The first gates of a cell whose products can be added to x.
EXPORT int64_t rnnkit_shared(const Kernels* kernels) { return kernels->shared; }

EXPORT int64_t rnnkit_arguments_size() { return sizeof(Arguments); }

EXPORT void rnnkit_scan(const Kernels* kernels, Arguments* a, int64_t threads) {
    const Plan plan(*a);
    kernels->scan(*a, Pool{pool.parallel_for, threads});
}

EXPORT void rnnkit_scan_backward(const Kernels* kernels, Arguments* a, int64_t threads) {
    const Plan plan(*a);
    kernels->scan_backward(*a, Pool{pool.parallel_for, threads});
}

EXPORT void rnnkit_step(const Kernels* kernels, Arguments* a, int64_t threads) {
    kernels->step(*a, Pool{pool.parallel_for, threads});
}
