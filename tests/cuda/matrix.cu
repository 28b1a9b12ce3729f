// One product a warp, of fragments that the caller has laid out; and TF32's rounding.
#include "cuda/device.h"

namespace rnnkit {

template <class S>
KERNEL(64, 1) void multiply(const uint32_t* a, const uint32_t* b, float* c) {
    const int at = block_x() * threads() + thread();
    uint32_t left[4], right[2];
    float sums[4];
    for (int k = 0; k < 4; ++k) {
        left[k] = a[4 * at + k];
        sums[k] = c[4 * at + k];
    }
    for (int k = 0; k < 2; ++k) right[k] = b[2 * at + k];
    mma<S>(sums, left, right);
    for (int k = 0; k < 4; ++k) c[4 * at + k] = sums[k];
}

template <class S> int launch_multiply(const uint32_t* a, const uint32_t* b, float* c, int blocks) {
    Launch how;
    how.x = blocks;
    how.threads = 64;
    return launch(multiply<S>, how, a, b, c);
}

KERNEL(32, 1) void round_all(const float* from, float* to, int count) {
    for (int k = thread(); k < count; k += threads()) to[k] = round_tf32(from[k]);
}

}  // namespace rnnkit

using namespace rnnkit;

extern "C" {

int multiply_bfloat16(const uint32_t* a, const uint32_t* b, float* c, int blocks) {
    return launch_multiply<__nv_bfloat16>(a, b, c, blocks);
}
int multiply_half(const uint32_t* a, const uint32_t* b, float* c, int blocks) {
    return launch_multiply<__half>(a, b, c, blocks);
}
int multiply_float(const uint32_t* a, const uint32_t* b, float* c, int blocks) {
    return launch_multiply<float>(a, b, c, blocks);
}

int round_floats(const float* from, float* to, int count) {
    return launch(round_all, Launch(), from, to, count);
}

}
