// What reverse, lengths and resets mean, and how the rows of a scan are shared among threads.
#pragma once
#include "memory.h"
#include "team.h"
#include "vector.h"

namespace rnnkit {
namespace RNNKIT_ISA {

// One group's time: step i of its loop is at time(i).
struct Sequence {
    const Arguments& a;
    int64_t n;
    bool back;

    Sequence(const Arguments& a, int64_t n)
        : a(a), n(n), back((a.reverse >> (n * a.runs / a.N)) & 1) {}

    int64_t time(int64_t i) const { return back ? a.T - 1 - i : i; }
    int64_t row(int64_t k) const { return a.order ? a.order[n * a.B + k] : k; }
    int64_t length(int64_t b) const { return a.valid ? a.valid[n * a.B + b] : a.T; }
    int64_t start(int64_t b) const { return back ? length(b) - 1 : 0; }
    int64_t after(int64_t t) const { return back ? t - 1 : t + 1; }

    // Whether step t is entered with a zero state.
    bool fresh(int64_t t, int64_t b) const {
        if (!a.resets) return false;
        const int64_t border = back ? t + 1 : t;
        return border < length(b)
               && a.resets[border * a.resets_t + b * a.resets_b + n * a.resets_n];
    }

    // The element of (T, B, N, ...) that belongs to this step and row.
    int64_t at(int64_t t, int64_t b) const { return (t * a.B + b) * a.N + n; }
};

// How a team shares the work: each thread takes whole rows, or whole groups, or, where rows are
// few, columns of the products of all rows, with barriers.
enum class Split { ROWS, GROUPS, COLUMNS };

struct Sharing {
    Split split;
    int64_t threads;
};

inline Sharing share(const Arguments& a, int64_t gates, int64_t bytes, const Pool& pool) {
    const int64_t weights = gates * a.H * a.H, work = a.T * a.B * a.N * (weights + 64 * a.H);
    int64_t threads = 1 + work / 200000;
    if (threads > pool.threads) threads = pool.threads;
    if (threads == 1) return {Split::ROWS, 1};
    if (a.N % threads == 0) return {Split::GROUPS, threads};
    // Whoever takes rows reads all weights at every step: few rows do not pay for it.
    const bool few = a.B < 6 * threads && weights * bytes >= (1 << 18);
    if (few || (a.B < threads && weights >= (1 << 14))) return {Split::COLUMNS, threads};
    return {Split::ROWS, threads < a.B ? threads : a.B};
}

constexpr int64_t MOST_TILE_ROWS = 48;

// Some rows of one group, the longest first, which walk through time together.
struct Rows {
    Array<int64_t> rows;
    int64_t count = 0, active = 0;

    explicit Rows(int64_t most) : rows(most) {}

    // The rows that are valid at time t are the first ones.
    void reach(const Sequence& sequence, int64_t t) {
        while (active > 0 && sequence.length(rows[active - 1]) <= t) --active;
        while (active < count && sequence.length(rows[active]) > t) ++active;
    }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
