// Clusters: addresses of peers, and barriers that count arrivals and bytes.
#include "emulation.h"
#include "races.h"

namespace rnnkit {
namespace emulation {

namespace {

constexpr const char* WAIT = "barrier_wait()";
// An address has the rank above the offset in shared memory.
constexpr int RANK_SHIFT = 20;
// Of a barrier that was made: not what shared memory is full of at first.
constexpr uint32_t MADE = 42;

// What lies in the 64 bits of a barrier.
struct Barrier {
    uint32_t made : 7, phase : 1, arrivals : 12, missing : 12;
    int32_t bytes;  // to come
};

Barrier load(const uint64_t* place) {
    const Barrier barrier = bits_of<Barrier>(*place);
    if (barrier.made != MADE) fail("there is no barrier where one is used");
    return barrier;
}

// The next phase, if nothing is missing in this one.
void store(Block* block, uint64_t* place, Barrier barrier) {
    const bool over = barrier.missing == 0 && barrier.bytes == 0;
    if (over) {
        barrier.phase ^= 1;
        barrier.missing = barrier.arrivals;
    }
    *place = bits_of<uint64_t>(barrier);
    progress();
    if (!over) return;
    end_phase(place);
    wake(block->group, WAIT, place);
}

uint32_t offset_of(const void* own) {
    const ptrdiff_t offset = static_cast<const char*>(own) - self->block->shared;
    if (offset < 0 || offset >= grid.shared_bytes) fail("an address is not in shared memory");
    return uint32_t(offset);
}

void check_barrier(const uint64_t* own) {
    if (offset_of(own) % sizeof(*own) != 0) fail("a barrier is not aligned");
}

// Blocks of a cluster are neighbours, and so are their threads.
Block* peer(uint32_t rank) { return self->cluster->threads[rank * grid.threads].block; }

template <class T> void store_later(uint32_t address, T value, uint32_t barrier) {
    constexpr uint32_t offsets = (1u << RANK_SHIFT) - 1;
    Block* const block = peer(address >> RANK_SHIFT);
    if (address >> RANK_SHIFT != barrier >> RANK_SHIFT)
        fail("store_async() and its barrier are of different blocks");
    if (address % sizeof(T) != 0) fail("store_async() is not aligned");
    char* const to = block->shared + (address & offsets);
    auto* const place = reinterpret_cast<uint64_t*>(block->shared + (barrier & offsets));
    store_asynchronously(to, sizeof(value), place);
    later([=] {
        if (block->group.returned == block->group.count)
            fail("store_async() came to a block that had returned");
        std::memcpy(to, &value, sizeof(value));
        Barrier counted = load(place);
        counted.bytes -= sizeof(value);
        store(block, place, counted);
    });
    may_switch();
}

}  // namespace
}  // namespace emulation

using namespace emulation;

int cluster_rank() { return self->block->x % grid.cluster; }

void cluster_synchronise() { meet(*self->cluster, "cluster_synchronise()"); }

uint32_t peer_address(const void* own, int rank) {
    if (rank < 0 || rank >= grid.cluster)
        fail("no block of the cluster has rank " + std::to_string(rank));
    return uint32_t(rank) << RANK_SHIFT | offset_of(own);
}

void barrier_init(uint64_t* barrier, int arrivals) {
    check_barrier(barrier);
    *barrier = bits_of<uint64_t>(Barrier{MADE, 0, uint32_t(arrivals), uint32_t(arrivals), 0});
}

void barrier_expect(uint64_t* barrier, int bytes) {
    check_barrier(barrier);
    may_switch();
    Barrier counted = load(barrier);
    if (counted.missing == 0) fail("more arrive at a barrier than it was made for");
    --counted.missing;
    counted.bytes += bytes;
    arrive(barrier);
    store(self->block, barrier, counted);
}

void barrier_wait(uint64_t* barrier, int parity) {
    check_barrier(barrier);
    may_switch();
    while (int(load(barrier).phase) == parity) wait(WAIT, barrier);
    acquire(barrier);
}

void store_async(uint32_t address, uint32_t value, uint32_t barrier) {
    store_later(address, value, barrier);
}
void store_async(uint32_t address, uint2 value, uint32_t barrier) {
    store_later(address, value, barrier);
}
void store_async(uint32_t address, uint4 value, uint32_t barrier) {
    store_later(address, value, barrier);
}

}  // namespace rnnkit
