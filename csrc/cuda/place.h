// Where a unit is, and what reverse, lengths and resets mean for it.
#pragma once
#include "arguments.h"
#include "device.h"

namespace rnnkit {

// A unit of a row of the batch; `exists` is false past the last one.
struct Place {
    int b, n, j;
    bool exists;
};

// Which way time runs for a group, and where a row's sequence begins, ends and is parted.
struct Clock {
    const Arguments& a;
    int n;
    bool back;

    DEVICE Clock(const Arguments& a, int n)
        : a(a), n(n), back(a.reverse >> (n / (a.N / a.runs)) & 1) {}

    DEVICE int time(int k) const { return back ? int(a.T) - 1 - k : k; }

    // From the k-th step's time to the next one's; zero if there is none.
    DEVICE int onward(int k) const { return k + 1 >= a.T ? 0 : back ? -1 : 1; }

    // From the time of a step that is not the first to that of the one before.
    DEVICE int before() const { return back ? 1 : -1; }

    // Whether the row's sequence begins at a step within its length.
    DEVICE bool first(int t, int b) const {
        return back ? t + 1 == a.T || !live(t + 1, b) : t == 0;
    }

    // Both of a step. Most scans have neither lengths nor resets, and compute no addresses then.
    DEVICE void tell(int t, int b, bool& is_live, bool& is_fresh) const {
        is_live = true;
        is_fresh = false;
        if (!a.lengths && !a.resets) return;
        is_live = live(t, b);
        is_fresh = fresh(t, b);
    }

    DEVICE bool live(int t, int b) const {
        return !a.lengths || t < a.lengths[b * a.lengths_b + n * a.lengths_n];
    }

    // Whether the row enters the step with a zero state: where a reset parts it from the step that
    // came before in the group's order.
    DEVICE bool fresh(int t, int b) const {
        if (!a.resets) return false;
        const int reset = back ? t + 1 : t;
        return reset < a.T && live(reset, b)
               && a.resets[reset * a.resets_t + b * a.resets_b + n * a.resets_n];
    }
};

}  // namespace rnnkit
