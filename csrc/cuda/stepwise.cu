// The stepwise kernels, of every cell for every kind of product, and how Python finds them.
#include <cstring>
#include "../cells/cells.h"
#include "stepwise.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace rnnkit;

namespace {

struct Entry {
    const char* cell;
    int64_t summed;
    int (*launch[2])(const Arguments&, const Form&, const Steps&);  // forward, backward
};

template <class Kind, class C, bool BACKWARD>
int run(const Arguments& a, const Form& form, const Steps& steps) {
    return Loop<Kind, C, BACKWARD>{a, form, steps}.run();
}

template <class Kind, class C> constexpr Entry entry(const char* cell) {
    return {cell, Unit<typename Kind::S, C>::SUMMED, {run<Kind, C, false>, run<Kind, C, true>}};
}
#define CELL(name, norm, ...) entry<Kind, With<__VA_ARGS__, Normed::norm>>(name),

template <class Kind> const Entry* find(const char* cell) {
    using M = GpuMath<typename Kind::S>;
    static constexpr Entry entries[] = {RNNKIT_CELLS(CELL)};
    for (const Entry& entry : entries)
        if (std::strcmp(entry.cell, cell) == 0) return &entry;
    return nullptr;
}

}  // namespace

EXPORT int64_t rnnkit_steps_size() { return sizeof(Steps); }

// Null where there is none; kinds in the order of rnnkit/native/recipes/cuda.py.
EXPORT const void* rnnkit_stepwise(const char* cell, int64_t kind) {
    constexpr const Entry* (*finds[])(const char*)
        = {find<Half>, find<Bfloat16>, find<Tf32>, find<Ieee>, find<Double>};
    return finds[kind](cell);
}

// Of a cell, in every form: the gates whose sums backward finds in x (step.h).
EXPORT int64_t rnnkit_summed(const void* found) { return static_cast<const Entry*>(found)->summed; }

// 0; what rnnkit_error describes; or cuBLAS's status, negative.
EXPORT int rnnkit_stepwise_launch(const void* found, int64_t backward, const Arguments* a,
                                  const Form* form, const Steps* steps) {
    return static_cast<const Entry*>(found)->launch[backward](*a, *form, *steps);
}
