// The kernels of one kind of product, which the build defines: every cell.
#include "../cells/cells.h"
#include "kernels.h"
#include "persistent.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

namespace rnnkit {
namespace {

namespace kinds {
using half = MatrixUnits<__half>;
using bfloat16 = MatrixUnits<__nv_bfloat16>;
using tf32 = MatrixUnits<float>;
using ieee = FullPrecision;
}  // namespace kinds

using Kind = kinds::RNNKIT_KIND;
using M = GpuMath<Kind::S>;

template <class C, int UNIT_TILES, bool BACKWARD, bool CLUSTER> constexpr Kernel kernel() {
    using P = Block<Kind, C, UNIT_TILES, BACKWARD, CLUSTER>;
    return {P::COLUMNS, P::pitch, P::shared_bytes,
            launch_persistent<Kind, C, UNIT_TILES, BACKWARD, CLUSTER>};
}

template <class C> constexpr Entry entry(const char* cell) {
    return {cell,
            {{{kernel<C, 1, false, false>(), kernel<C, 1, false, true>()},
              {kernel<C, 1, true, false>(), kernel<C, 1, true, true>()}},
             {{kernel<C, 2, false, false>(), kernel<C, 2, false, true>()},
              {kernel<C, 2, true, false>(), kernel<C, 2, true, true>()}}}};
}

#define CELL(name, norm, ...) entry<With<__VA_ARGS__, Normed::norm>>(name),

constexpr Entry ENTRIES[] = {RNNKIT_CELLS(CELL)};

}  // namespace

Entries JOIN(entries, RNNKIT_KIND)() {
    return {ENTRIES, int(sizeof ENTRIES / sizeof *ENTRIES)};
}

}  // namespace rnnkit
