// Which cells have a norm of what comes before their step.
#pragma once

namespace rnnkit {

// Of its products; or of their sums with x, where the step sees nothing else of both.
template <class C> struct NormedProducts : C {};
template <class C> struct NormedSums : C {};

enum class Normed { NOTHING, PRODUCTS, SUMS };
template <class C> constexpr Normed NORMED = Normed::NOTHING;
template <class C> constexpr Normed NORMED<NormedProducts<C>> = Normed::PRODUCTS;
template <class C> constexpr Normed NORMED<NormedSums<C>> = Normed::SUMS;
template <class C> constexpr bool NORM = NORMED<C> != Normed::NOTHING;

}  // namespace rnnkit
