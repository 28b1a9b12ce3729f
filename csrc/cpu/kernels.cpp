// The kernels of one storage type for one instruction set, which the build defines: every cell.
#include <cstring>
#include "../cells/cells.h"
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

// A norm of what comes before the step is the same for every cell: Arguments::norm says it.
#define CELL(name, norm, ...) {name, of<__VA_ARGS__>()},
constexpr Entry ENTRIES[] = {RNNKIT_CELLS(CELL)};
#undef CELL

}  // namespace
}  // namespace RNNKIT_ISA

const Kernels* JOIN(find, RNNKIT_ISA, RNNKIT_STORAGE)(const char* cell) {
    for (const auto& entry : RNNKIT_ISA::ENTRIES)
        if (std::strcmp(entry.cell, cell) == 0) return &entry.kernels;
    return nullptr;
}

}  // namespace rnnkit
