// Numbers that a seed gives on every machine.
#pragma once
#include <cstdint>

namespace rnnkit::emulation {

// Marsaglia's xorshift, whose high bits a product makes good.
class Random {
    uint64_t state;

public:
    // An odd number of which the bits of products with small ones are spread evenly.
    static constexpr uint64_t SCATTER = 0x9e3779b97f4a7c15;

    explicit Random(uint64_t seed = 0) : state(seed * SCATTER | 1) {}

    // Of 32 bits.
    uint64_t draw() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state * 0x2545f4914f6cdd1d >> 32;
    }

    uint64_t below(uint64_t count) { return draw() * count >> 32; }
};

}  // namespace rnnkit::emulation
