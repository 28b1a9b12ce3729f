// Where a unit is, and what reverse, lengths and resets mean for it.
#pragma once
#include "arguments.h"
#include "device.h"

namespace rnnkit {

// What is so in few calls, such as that there is an argument which most leave out: what serves it is
// out of the others' way.
DEVICE bool seldom(bool given) { return __builtin_expect(given, 0); }

// How far on so many strides are, of what most calls leave out; they have 32 bits
// (rnnkit/cuda/scan.py).
DEVICE int64_t strides(int count, int64_t stride) { return int64_t(here(count)) * int(stride); }

// A unit of a row of the batch; `exists` is false past the last one.
struct Place {
    int b, n, j;
    bool exists;
};

// Whether a step is within its row's length, and whether it is entered with a zero state, in one
// register.
struct Flags {
    static constexpr int FRESH = 1, LIVE = 2;
    int bits;

    DEVICE bool live() const { return bits & LIVE; }
    DEVICE bool fresh() const { return bits & FRESH; }
};

// Which way time runs for a group, and where a row's sequence begins, ends and is parted.
struct Clock {
    const Arguments& a;
    const int n;
    const int onward;  // from the time of a step to that of the next one
    const int begin;   // the time of the first one

    DEVICE Clock(const Arguments& a, int n)
        : a(a), n(n), onward(settled(a.reverse >> (n / int(a.N / a.runs)) & 1 ? -1 : 1)),
          begin(onward < 0 ? int(a.T) - 1 : 0) {}

    DEVICE int time(int k) const { return begin + onward * k; }

    // From the k-th step's time to the next one's; zero if there is none.
    DEVICE int next(int k) const { return k + 1 < int(a.T) ? onward : 0; }

    // How many steps a row of the batch has.
    DEVICE int length(int b) const {
        const int all = int(a.T);
        if (!seldom(a.lengths)) return all;
        const int64_t given = a.lengths[strides(b, a.lengths_b) + strides(n, a.lengths_n)];
        return given < 0 ? 0 : given < all ? int(given) : all;
    }

    // Whether the row's sequence begins at a step within its length.
    DEVICE bool first(int t, int b) const { return onward < 0 ? t + 1 >= length(b) : t == 0; }

    // Of a step: whether it is within the row's length; and whether the row enters it with a zero
    // state, where a reset parts it from the step that came before in the group's order. Most scans
    // have neither lengths nor resets, and compute no addresses then.
    DEVICE Flags flags(int t, int b) const {
        if (!seldom(a.lengths) && !seldom(a.resets)) return {Flags::LIVE};
        const int length = this->length(b), reset = onward < 0 ? t + 1 : t;
        const bool fresh = a.resets && reset < length
                           && a.resets[strides(reset, a.resets_t) + strides(b, a.resets_b)
                                       + strides(n, a.resets_n)];
        return {(t < length ? Flags::LIVE : 0) + (fresh ? Flags::FRESH : 0)};
    }
};

}  // namespace rnnkit
