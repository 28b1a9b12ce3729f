// The kernels of one kind of product, which the build defines: every cell.
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
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
using M = GpuMath<sizeof(Kind::S) == 2>;

template <class C, int UNIT_TILES, bool BACKWARD> constexpr Entry entry(const char* cell) {
    using P = Block<Kind, C, UNIT_TILES, BACKWARD>;
    return {cell,     UNIT_TILES,      BACKWARD, P::COLUMNS,
            P::pitch, P::shared_bytes, launch_persistent<Kind, C, UNIT_TILES, BACKWARD>};
}

#define CELL(name, ...)                                                             \
    entry<__VA_ARGS__, 1, false>(name), entry<__VA_ARGS__, 1, true>(name),          \
        entry<__VA_ARGS__, 2, false>(name), entry<__VA_ARGS__, 2, true>(name)

constexpr Entry ENTRIES[] = {
    CELL("rnn_tanh", Rnn<M, false>),
    CELL("rnn_relu", Rnn<M, true>),
    CELL("rnn_tanh_norm", NormedSums<Rnn<M, false>>),
    CELL("rnn_relu_norm", NormedSums<Rnn<M, true>>),
    CELL("gru", Gru<M>),
    CELL("gru_norm", NormedProducts<Gru<M>>),
    CELL("gru_before", GruBefore<M>),
    CELL("gru_before_norm", NormedProducts<GruBefore<M>>),
    CELL("lstm", Lstm<M, false, false, false>),
    CELL("lstm_norm", NormedProducts<Lstm<M, false, true, false, false>>),
    CELL("lstm_norm_carry", NormedProducts<Lstm<M, false, true, true, false>>),
    CELL("lstm_peephole", Lstm<M, true, false, false>),
    CELL("lstm_peephole_norm", NormedProducts<Lstm<M, true, true, false, false>>),
    CELL("lstm_peephole_norm_carry", NormedProducts<Lstm<M, true, true, true, false>>),
};

}  // namespace

Entries JOIN(entries, RNNKIT_KIND)() {
    return {ENTRIES, int(sizeof ENTRIES / sizeof *ENTRIES)};
}

}  // namespace rnnkit
