// The functions of cells on a GPU, for one value; none overflows to NaN, and NaN stays NaN.
#pragma once
#include <cmath>
#include "device.h"

namespace rnnkit {

// FAST: with errors of a few units in the last place of what 16 bits hold.
template <bool FAST> struct GpuMath {
    using Value = float;

    HOST_DEVICE static float exponential(float v) {
#ifdef __CUDA_ARCH__
        if constexpr (FAST) return __expf(v);
#endif
        return expf(v);
    }

    // exp overflows to infinity for v < -88, and 1 / infinity is the right 0.
    HOST_DEVICE static float sigmoid(float v) { return 1 / (1 + exponential(-v)); }

    HOST_DEVICE static float tanh(float v) {
        if constexpr (FAST) return 1 - 2 / (1 + exponential(2 * v));
        return tanhf(v);
    }

    HOST_DEVICE static float relu(float v) { return v < 0 ? 0 : v; }
    HOST_DEVICE static float positive(float v) { return v > 0 ? 1 : 0; }
};

HOST_DEVICE float inverse_root(float v) {
#ifdef __CUDA_ARCH__
    return rsqrtf(v);
#else
    return 1 / sqrtf(v);
#endif
}

// Values of a storage type, and the arithmetic's.
HOST_DEVICE float wide(float v) { return v; }
HOST_DEVICE float wide(__half v) { return __half2float(v); }
HOST_DEVICE float wide(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class S> HOST_DEVICE S narrow(float v) {
    if constexpr (std::is_same_v<S, __half>) return __float2half(v);
    else if constexpr (std::is_same_v<S, __nv_bfloat16>) return __float2bfloat16(v);
    else return v;
}

}  // namespace rnnkit
