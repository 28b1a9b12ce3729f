// Layer normalisation of one row of values, and its gradient (Ba et al. 2016, equation 3).
#pragma once
#include "vector.h"

namespace rnnkit {
namespace RNNKIT_ISA {

template <class R> struct Moments {
    R mean, scale;
};

template <class R> inline Moments<R> moments(const R* v, int64_t count, R eps) {
    using V = Vector<R>;
    V total = {};
    for (int64_t j = 0; j < count; j += LANES<R>) total += load(v + j, Part<R>(count - j));
    const R mean = sum<R>(total) / R(count);
    V squares = {};
    for (int64_t j = 0; j < count; j += LANES<R>) {
        const Part<R> part(count - j);
        const V centred = load(v + j, part) - mean;
        squares += first(centred * centred, part);
    }
    const R variance = sum<R>(squares) / R(count) + eps;
    return {mean, R(1) / (sizeof(R) == 4 ? R(__builtin_sqrtf(float(variance)))
                                         : R(__builtin_sqrt(double(variance))))};
}

// Normalises in place; returns the scale.
template <class R> inline R normalise(R* v, int64_t count, R eps) {
    const Moments<R> m = moments(v, count, eps);
    for (int64_t j = 0; j < count; j += LANES<R>) {
        const Part<R> part(count - j);
        store(v + j, (load(v + j, part) - m.mean) * m.scale, part);
    }
    return m.scale;
}

// The gradient of what was normalised to n, in place of dn.
template <class R> inline void normalise_gradient(R* dn, const R* n, R scale, int64_t count) {
    using V = Vector<R>;
    V total = {}, along = {};
    for (int64_t j = 0; j < count; j += LANES<R>) {
        const Part<R> part(count - j);
        const V d = load(dn + j, part);
        total += d;
        along += d * load(n + j, part);
    }
    const R mean = sum<R>(total) / R(count), slope = sum<R>(along) / R(count);
    for (int64_t j = 0; j < count; j += LANES<R>) {
        const Part<R> part(count - j);
        store(dn + j, scale * (load(dn + j, part) - mean - load(n + j, part) * slope), part);
    }
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
