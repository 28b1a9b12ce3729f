// CUDA on the CPU: what csrc/cuda/device.h promises, for one grid at a time, whose blocks all run
// at once. Drawn from a seed are the order in which threads go on, and when asynchronous stores
// come; shared memory is NaN at first. A launch that would hang or break a GPU returns an error.
//
// It is sequentially consistent: a missing barrier or wait shows, if a schedule lets it; a missing
// release or acquire only where threads are watched (races.h), and then whatever the schedule.
#pragma once
#include <cstring>
#include "cuda/device.h"
#include "scheduler.h"

#define KERNEL(...)
#define DEVICE inline
// What runs the threads is none of their data, and not told of (races.h).
#define UNTOLD __attribute__((no_sanitize("thread")))
#define UNWATCHED UNTOLD DEVICE

extern "C" {
// The launches from here on are drawn from it.
void emulation_seed(uint64_t seed);
// What went wrong in the last one.
const char* emulation_error();
}

namespace rnnkit {
namespace emulation {

extern Launch grid;

// Of flags, which are not data.
unsigned acquired(const unsigned* flag);
void released(unsigned* flag, unsigned count);

// Of launch().
int run(const Launch& how, const std::function<void()>& kernel);

template <class To, class From> To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(static_cast<void*>(&to), &value, sizeof(to));
    return to;
}

template <class T> struct Shuffle {
    T value, *result;
    int mask;
};

template <class T> UNTOLD void shuffle(Group& warp) {
    for (int k = 0; k < 32; ++k) {
        const auto& mine = *static_cast<const Shuffle<T>*>(warp.threads[k].operand);
        const int other = (k ^ mine.mask) % 32;
        *mine.result = static_cast<const Shuffle<T>*>(warp.threads[other].operand)->value;
    }
}

// What the hardware makes of a number in a word of a fragment.
template <class S> float seen(uint32_t word, int k) {
    return float(bits_of<S>(uint16_t(word >> 16 * k)));
}
template <> inline float seen<float>(uint32_t word, int) { return bits_of<float>(word & ~0x1fffu); }

struct Fragments {
    float* c;
    const uint32_t *a, *b;
};

// A matrix's row of 32 bytes, of which four lanes hold words j and, `next` words on, j + 4.
template <class S> UNTOLD void gather(float* row, const uint32_t* const (&words)[4], int next) {
    constexpr int each = 4 / sizeof(S);
    for (int j = 0; j < 4; ++j)
        for (int k = 0; k < each; ++k) {
            row[j * each + k] = seen<S>(words[j][0], k);
            row[(j + 4) * each + k] = seen<S>(words[j][next], k);
        }
}

template <class S> UNTOLD void multiply(Group& warp) {
    float a[16][MMA_DEPTH<S>], b[8][MMA_DEPTH<S>];
    const Fragments* lanes[32];
    for (int k = 0; k < 32; ++k)
        lanes[k] = static_cast<const Fragments*>(warp.threads[k].operand);
    for (int i = 0; i < 8; ++i) {
        const Fragments* const* four = lanes + 4 * i;
        gather<S>(a[i], {four[0]->a, four[1]->a, four[2]->a, four[3]->a}, 2);
        gather<S>(a[i + 8], {four[0]->a + 1, four[1]->a + 1, four[2]->a + 1, four[3]->a + 1}, 2);
        gather<S>(b[i], {four[0]->b, four[1]->b, four[2]->b, four[3]->b}, 1);
    }
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 8; ++j) {
            float sum = 0;
            for (int k = 0; k < MMA_DEPTH<S>; ++k) sum += a[i][k] * b[j][k];
            lanes[i % 8 * 4 + j / 2]->c[i / 8 * 2 + j % 2] += sum;
        }
}

}  // namespace emulation

constexpr bool HAS_CLUSTERS = true;

UNWATCHED int thread() { return emulation::self->index; }
UNWATCHED int threads() { return emulation::grid.threads; }
DEVICE int lane() { return thread() % 32; }
DEVICE int warp() { return thread() / 32; }
UNWATCHED int block_x() { return emulation::self->block->x; }
UNWATCHED int block_y() { return emulation::self->block->y; }
UNWATCHED int blocks_x() { return emulation::grid.x; }
UNWATCHED int blocks_y() { return emulation::grid.y; }

template <class T> UNWATCHED T* shared_memory() {
    return reinterpret_cast<T*>(emulation::self->block->shared);
}

UNWATCHED void synchronise() { emulation::meet(emulation::self->block->group, "synchronise()"); }
UNWATCHED void synchronise_warp() { emulation::meet(*emulation::self->warp, "synchronise_warp()"); }

template <class T> UNWATCHED T shuffle_xor(T value, int mask) {
    T result;
    const emulation::Shuffle<T> operand = {value, &result, mask};
    emulation::meet(*emulation::self->warp, "shuffle_xor()", &operand, emulation::shuffle<T>);
    return result;
}

template <class S>
UNWATCHED void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const emulation::Fragments operand = {c, a, b};
    emulation::meet(*emulation::self->warp, "mma()", &operand, emulation::multiply<S>);
}

// Half a unit in the last place that is kept is added to the size; the exponent takes the carry.
DEVICE float round_tf32(float value) {
    const uint32_t bits = emulation::bits_of<uint32_t>(value);
    if (value != value) return value;
    return emulation::bits_of<float>((bits + 0x1000u) & ~0x1fffu);
}

DEVICE unsigned load_acquire(const unsigned* flag) {
    emulation::may_switch();
    return emulation::acquired(flag);
}

DEVICE void add_release(unsigned* flag, unsigned count) {
    emulation::may_switch();
    emulation::released(flag, count);
    emulation::progress();
    emulation::may_switch();
}

DEVICE uint4 load_l2(const uint4* from) {
    emulation::may_switch();
    return *from;
}

DEVICE uint4 load_received(const uint4* from) {
    emulation::may_switch();
    return *from;
}

template <class T> DEVICE T settled(T v) { return v; }
DEVICE int here(int number) { return number; }
DEVICE void prefetch(const void*) {}
DEVICE void pause() { emulation::must_switch(); }

int cluster_rank();
void cluster_synchronise();
uint32_t peer_address(const void* own, int rank);
void barrier_init(uint64_t* barrier, int arrivals);
void barrier_expect(uint64_t* barrier, int bytes);
void barrier_wait(uint64_t* barrier, int parity);
void store_async(uint32_t address, uint32_t value, uint32_t barrier);
void store_async(uint32_t address, uint2 value, uint32_t barrier);
void store_async(uint32_t address, uint4 value, uint32_t barrier);

template <class... P>
int launch(void (*kernel)(P...), const Launch& how, std::common_type_t<P>... arguments) {
    return emulation::run(how, [&]() UNTOLD { kernel(arguments...); });
}

// Of 16 neighbours.
template <class Kernel> int clusters(Kernel, const Launch& how) { return 16 / how.cluster; }

inline int ready() { return 0; }
inline const char* launch_error(int) { return emulation_error(); }

}  // namespace rnnkit
