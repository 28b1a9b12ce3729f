// The functions of cells on a GPU, for one value; none overflows to NaN, and NaN stays NaN.
#pragma once
#include <cmath>
#include "device.h"

namespace rnnkit {

// What values that are stored as S are computed in.
template <class S> using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

// For values stored as S: for 16 bits, with errors of a few units in the last place of those.
template <class S> struct GpuMath {
    using Value = Wide<S>;
    static constexpr bool FAST = sizeof(S) == 2;

    HOST_DEVICE static Value exponential(Value v) {
#ifdef __CUDA_ARCH__
        // __expf looks after numbers below the normal ones.
        if constexpr (FAST) {
            float power;
            asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v * 1.44269504f));
            return power;
        }
#endif
        return std::exp(v);
    }

    // Of v from 1 on. The fast one is 0 above 2^126.
    HOST_DEVICE static Value inverse(Value v) {
#ifdef __CUDA_ARCH__
        if constexpr (FAST) return __fdividef(1, v);
#endif
        return 1 / v;
    }

    // exp overflows to infinity for large -v, and 1 / infinity is the right 0.
    HOST_DEVICE static Value sigmoid(Value v) { return inverse(1 + exponential(-v)); }

    HOST_DEVICE static Value tanh(Value v) {
        if constexpr (FAST) return 1 - 2 * inverse(1 + exponential(2 * v));
        return std::tanh(v);
    }

    HOST_DEVICE static Value relu(Value v) { return v < 0 ? 0 : v; }
    HOST_DEVICE static Value positive(Value v) { return v > 0 ? 1 : 0; }
};

template <class V> HOST_DEVICE V inverse_root(V v) {
#ifdef __CUDA_ARCH__
    return rsqrt(v);
#else
    return 1 / std::sqrt(v);
#endif
}

// Values of a storage type, and the arithmetic's.
HOST_DEVICE double wide(double v) { return v; }
HOST_DEVICE float wide(float v) { return v; }
HOST_DEVICE float wide(__half v) { return __half2float(v); }
HOST_DEVICE float wide(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class S> HOST_DEVICE S narrow(Wide<S> v) {
    if constexpr (std::is_same_v<S, __half>) return __float2half(v);
    else if constexpr (std::is_same_v<S, __nv_bfloat16>) return __float2bfloat16(v);
    else return v;
}

}  // namespace rnnkit
