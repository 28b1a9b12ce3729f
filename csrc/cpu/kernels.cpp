// The kernels of one storage type for one instruction set, which the build defines: every cell.
#include <cstring>
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "run.h"
#include "step.h"

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)

namespace rnnkit {
namespace RNNKIT_ISA {
namespace {

using S = RNNKIT_STORAGE;
using M = Math<Real<S>>;

struct Entry {
    const char* cell;
    Kernels kernels;
};

template <class C> constexpr Kernels of() {
    if constexpr (C::normalises)
        return {C::shared, scan<S, C>, scan_backward<S, C>, nullptr};
    else
        return {C::shared, scan<S, C>, scan_backward<S, C>, step<S, C>};
}

constexpr Entry ENTRIES[] = {
    {"rnn_tanh", of<Rnn<M, false>>()},
    {"rnn_relu", of<Rnn<M, true>>()},
    {"gru", of<Gru<M>>()},
    {"gru_before", of<GruBefore<M>>()},
    {"lstm", of<Lstm<M, false, false, false>>()},
    {"lstm_norm", of<Lstm<M, false, true, false>>()},
    {"lstm_norm_carry", of<Lstm<M, false, true, true>>()},
    {"lstm_peephole", of<Lstm<M, true, false, false>>()},
    {"lstm_peephole_norm", of<Lstm<M, true, true, false>>()},
    {"lstm_peephole_norm_carry", of<Lstm<M, true, true, true>>()},
};

}  // namespace
}  // namespace RNNKIT_ISA

const Kernels* JOIN(find, RNNKIT_ISA, RNNKIT_STORAGE)(const char* cell) {
    for (const auto& entry : RNNKIT_ISA::ENTRIES)
        if (std::strcmp(entry.cell, cell) == 0) return &entry.kernels;
    return nullptr;
}

}  // namespace rnnkit
