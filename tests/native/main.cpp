// Runs the library without Python, for sanitizers to watch: every cell on random problems, by one
// thread and by several, whose results must be the same, whole and finite.
//
//   main INSTRUCTION_SET scans|steps|large|together COUNT
//   main INSTRUCTION_SET short|twice      has a fault that the sanitizer must find
#include <cstdio>
#include <string>
#include "pools.h"
#include "problem.h"
#include "split.h"

namespace rnnkit {

// The library knows kernels of more types and instruction sets than this program has.
#define ABSENT(isa, storage) \
    __attribute__((weak)) const Kernels* find_##isa##_##storage(const char*) { return nullptr; }
#define ABSENT_ALL(isa) ABSENT(isa, float) ABSENT(isa, double) ABSENT(isa, bfloat16)
ABSENT_ALL(baseline)
ABSENT_ALL(avx2)
ABSENT_ALL(avx512)

}  // namespace rnnkit

extern "C" {
void rnnkit_start(rnnkit::ParallelFor parallel_for);
const char* rnnkit_instruction_set(int64_t index);
const rnnkit::Kernels* rnnkit_kernels(const char* cell, int64_t storage, int64_t index);
int64_t rnnkit_shared(const rnnkit::Kernels* kernels);
void rnnkit_scan(const rnnkit::Kernels* kernels, rnnkit::Arguments* a, int64_t threads);
void rnnkit_scan_backward(const rnnkit::Kernels* kernels, rnnkit::Arguments* a, int64_t threads);
void rnnkit_step(const rnnkit::Kernels* kernels, rnnkit::Arguments* a, int64_t threads);
}

namespace test {

std::atomic<int> split{NONE}, seen{0};
int64_t instruction_set;

template <class... Values> [[noreturn]] void fail(const char* format, Values... values) {
    std::fprintf(stderr, format, values...);
    std::fputc('\n', stderr);
    std::exit(1);
}

const rnnkit::Kernels* kernels_of(const Cell& cell) {
    const int64_t storage = sizeof(S) == 2 ? 2 : sizeof(S) == 8;
    const auto* kernels = rnnkit_kernels(cell.name, storage, instruction_set);
    if (!kernels) fail("%s: there are no kernels", cell.name);
    if (rnnkit_shared(kernels) != cell.shared) fail("%s: other counts", cell.name);
    return kernels;
}

// How many threads a call asks for, how many it gets, and how they share the work.
struct How {
    int64_t threads, given;
    int split;
};
constexpr How ALONE = {1, 1, NONE};

void run(const Cell& cell, Problem& problem, const How& how) {
    const auto* kernels = kernels_of(cell);
    most_threads = how.given;
    split = how.split;
    if (problem.a.T == 0) return rnnkit_step(kernels, &problem.a, how.threads);
    rnnkit_scan(kernels, &problem.a, how.threads);
    rnnkit_scan_backward(kernels, &problem.a, how.threads);
}

void compare(const Cell& cell, uint64_t seed, const Problem& expected, const Problem& found) {
    for (size_t k = 0; k < expected.results.size(); ++k) {
        const Result &one = expected.results[k], &other = found.results[k];
        if (one.bytes == 0) continue;
        if (one.check && !one.check(one.data, one.bytes))
            fail("%s, seed %llu: %s is not finite", cell.name, (unsigned long long)seed, one.name);
        if (std::memcmp(one.data, other.data, one.bytes) != 0)
            fail("%s, seed %llu: %s depends on the threads", cell.name, (unsigned long long)seed,
                 one.name);
    }
}

How some_way(Random& random, bool forced) {
    const int64_t threads = 2 + random.below(3);
    return {threads, random.one_of(3) ? (threads + 1) / 2 : threads,
            forced ? int(random.below(3)) : NONE};
}

void scan(const Cell& cell, const Sizes& sizes, uint64_t seed, const How& how) {
    Problem alone(cell, sizes, seed, true), shared(cell, sizes, seed, false);
    run(cell, alone, ALONE);
    run(cell, shared, how);
    compare(cell, seed, alone, shared);
}

void scans(int64_t count) {
    for (const Cell& cell : CELLS)
        for (int64_t k = 0; k < count; ++k) {
            Random random(k);
            const Sizes sizes = some_sizes(random);
            scan(cell, sizes, k, some_way(random, true));
        }
}

void steps(int64_t count) {
    for (const Cell& cell : CELLS)
        for (int64_t k = 0; k < count && !cell.normalises; ++k) {
            Random random(k);
            const Sizes sizes = some_sizes(random);
            Problem alone = Problem::step(cell, sizes, k, true);
            Problem shared = Problem::step(cell, sizes, k, false);
            run(cell, alone, ALONE);
            run(cell, shared, some_way(random, false));
            compare(cell, k, alone, shared);
        }
}

// Large enough for the library to share the work as it does for users, in each of its ways.
void large(int64_t count) {
    seen = 0;
    const Sizes groups = {2, 3, 2, 70, 5}, rows = {2, 20, 1, 70, 5}, columns = {2, 2, 1, 260, 5};
    for (const Cell& cell : CELLS)
        for (int64_t k = 0; k < count; ++k)
            for (const Sizes& sizes : {groups, rows, columns})
                scan(cell, sizes, k, {2, 2, NONE});
    if (seen != 7) fail("of the splits only these were seen, as bits: %d", seen.load());
}

// Calls of several threads at a time, each on threads of its own.
void together(int64_t count) {
    const auto caller = [count](int way) {
        for (int64_t k = 0; k < count; ++k) {
            const Cell& cell = CELLS[(k + way) % std::size(CELLS)];
            Random random(k);
            Problem problem(cell, some_sizes(random), k, false);
            rnnkit_scan(kernels_of(cell), &problem.a, 2);
            rnnkit_scan_backward(kernels_of(cell), &problem.a, 2);
        }
    };
    most_threads = 2;
    split = 2;
    std::thread other(caller, 1);
    caller(0);
    other.join();
}

// The last weight is missing.
void short_block() {
    const Cell& cell = CELLS[0];
    Problem problem(cell, {1, 1, 1, 3, 1}, 0, false);
    Memory memory(false);
    problem.a.w = memory.take((3 * 3 - 1) * sizeof(S));
    run(cell, problem, ALONE);
}

void twice() {
    rnnkit_start(parallel_for_twice);
    Problem problem(CELLS[0], {6, 20, 1, 37, 1}, 0, false);
    run(CELLS[0], problem, {2, 2, 0});
}

}  // namespace test

int main(int count, char** words) {
    using namespace test;
    if (count < 3) fail("which instruction set, and what?");
    const std::string name = words[1], what = words[2];
    const char* known;
    while ((known = rnnkit_instruction_set(instruction_set)) && name != known) ++instruction_set;
    if (!known) fail("there is no %s", words[1]);
    rnnkit_start(parallel_for);
    const int64_t repeats = count > 3 ? std::atoll(words[3]) : 1;
    if (what == "scans") scans(repeats);
    else if (what == "steps") steps(repeats);
    else if (what == "large") large(repeats);
    else if (what == "together") together(repeats);
    else if (what == "short") short_block();
    else if (what == "twice") twice();
    else fail("what is %s?", words[2]);
    return 0;
}
