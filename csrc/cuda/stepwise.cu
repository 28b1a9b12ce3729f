// The stepwise kernels, of every cell for every kind of product, and how Python finds them.
#include <cstring>
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "stepwise.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace rnnkit;

namespace {

struct Entry {
    const char* cell;
    int (*launch[2])(const Arguments&, const Form&, const Steps&);  // forward, backward
};

template <class Kind, class C> constexpr Entry entry(const char* cell) {
    return {cell, {launch_stepwise<Kind, C, false>, launch_stepwise<Kind, C, true>}};
}

template <class Kind> const Entry* find(const char* cell) {
    using M = GpuMath<sizeof(typename Kind::S) == 2>;
    static constexpr Entry entries[] = {
        entry<Kind, Rnn<M, false>>("rnn_tanh"),
        entry<Kind, Rnn<M, true>>("rnn_relu"),
        entry<Kind, Gru<M>>("gru"),
        entry<Kind, Lstm<M, false, false, false>>("lstm"),
        entry<Kind, Lstm<M, true, false, false>>("lstm_peephole"),
    };
    for (const Entry& entry : entries)
        if (std::strcmp(entry.cell, cell) == 0) return &entry;
    return nullptr;
}

}  // namespace

EXPORT int64_t rnnkit_steps_size() { return sizeof(Steps); }

// Null where there is none; kinds in the order of rnnkit/native/recipes/cuda.py.
EXPORT const void* rnnkit_stepwise(const char* cell, int64_t kind) {
    constexpr const Entry* (*finds[])(const char*)
        = {find<Half>, find<Bfloat16>, find<Tf32>, find<Ieee>};
    return finds[kind](cell);
}

// 0; what rnnkit_error describes; or cuBLAS's status, negative.
EXPORT int rnnkit_stepwise_launch(const void* found, int64_t backward, const Arguments* a,
                                  const Form* form, const Steps* steps) {
    return static_cast<const Entry*>(found)->launch[backward](*a, *form, *steps);
}
