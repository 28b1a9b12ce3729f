// What of a cell is normalised before its step.
#pragma once

namespace rnnkit {

// Its products; or their sums with x, where the step sees nothing else of both.
enum class Normed { NOTHING, SUMS, PRODUCTS };
template <class C, Normed OF> struct With : C {
    static constexpr Normed normed = OF;
};

template <class C> constexpr Normed NORMED = C::normed;
template <class C> constexpr bool NORM = NORMED<C> != Normed::NOTHING;

}  // namespace rnnkit
