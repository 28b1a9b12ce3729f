// The kernels of one kind of product, which the build defines: every cell.
#include <utility>
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

// With a norm, a block by itself would need sums of several warps.
template <class C>
constexpr bool ALONE = std::is_same_v<Kind, FullPrecision> && !NORM<C> && !C::normalises;

template <class C, int SHAPE, bool BACKWARD> constexpr Kernel kernel() {
    constexpr Shape shape = SHAPES[SHAPE];
    if constexpr (shape.via == Via::BLOCK && !ALONE<C>) return {};
    else {
        using P = Block<Kind, C, shape.unit_tiles, BACKWARD, shape.via>;
        return {P::COLUMNS, P::pitch, P::shared_bytes,
                launch_persistent<Kind, C, shape.unit_tiles, BACKWARD, shape.via>};
    }
}

template <class C, int... SHAPE>
constexpr Entry entry(const char* cell, std::integer_sequence<int, SHAPE...>) {
    return {cell, {{kernel<C, SHAPE, false>(), kernel<C, SHAPE, true>()}...}};
}

#define CELL(name, norm, ...) \
    entry<With<__VA_ARGS__, Normed::norm>>(name, std::make_integer_sequence<int, SHAPE_COUNT>()),

constexpr Entry ENTRIES[] = {RNNKIT_CELLS(CELL)};

}  // namespace

Entries JOIN(entries, RNNKIT_KIND)() {
    return {ENTRIES, int(sizeof ENTRIES / sizeof *ENTRIES)};
}

}  // namespace rnnkit
