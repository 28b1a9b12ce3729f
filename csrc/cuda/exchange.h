// How the blocks that share a slice hand each other what they found, in rounds; and how the warps
// of a block do that has a slice to itself.
//
// In a round every block hands over its part of a chunk and arrives; who wants to read the others'
// waits until all of it is there. Nobody arrives for a round before it has seen the end of the one
// before. What a block stores in its own row() it then has to share().
//
// Two buffers do, of even and odd steps: whoever writes for step k + 1 has seen the end of a round of
// step k, in which every block took part after its last look at step k - 1, in the same buffer.
// backward.h says why what it hands over a step early is no exception.
#pragma once
#include <cstring>
#include "arguments.h"
#include "device.h"

namespace rnnkit {

enum class Via { L2, CLUSTER, BLOCK };

// Through L2, where one buffer serves all blocks: a flag for each chunk counts arrivals.
template <int COLUMNS> struct L2Exchange {
    const Form& form;
    int rounds = 0;  // that are over for all chunks, when one begins

    // Of a row, given what there is to hand over; of shared memory.
    HOST_DEVICE static int64_t pitch(int64_t bytes) { return bytes; }
    HOST_DEVICE static int64_t shared_bytes(int64_t, int64_t) { return 0; }

    DEVICE L2Exchange(const Form& form, char*) : form(form) {}
    DEVICE void begin() const {}

    DEVICE char* row(int step, int chunk, int column) const {
        const int index = (step % 2 * blocks_y() + block_y()) * int(form.chunks) + chunk;
        return form.exchange + int64_t(index * COLUMNS + column) * int(form.pitch);
    }

    DEVICE static uint4 load(const uint4* from) { return load_l2(from); }

    // As ClusterExchange has it.
    template <int LANES, int PARTS, int BYTES>
    DEVICE void share(int, const char*, int, int, int, int) const {}
    template <int LANES> DEVICE void share(int, float2* place, float2 value, int lane) const {
        if (lane == 0) *place = value;
    }

    // Each in a line of memory of its own: all warps of all blocks look at one until it changes.
    static constexpr int LINE = 128 / sizeof(unsigned);
    DEVICE unsigned* flag(int chunk) const {
        return form.arrivals + (block_y() * int(form.chunks) + chunk) * LINE;
    }

    // All threads of the block have handed over what they had to.
    DEVICE void arrive(int chunk) const {
        synchronise();
        if (thread() == 0) add_release(flag(chunk), 1);
    }

    // Until every block has arrived in the round before.
    DEVICE void wait(int chunk) const {
        const unsigned all = unsigned(rounds) * blocks_x();
        // Each warp by itself, since the one that arrived is held up by that.
        if (lane() == 0)
            while (load_acquire(flag(chunk)) < all) pause();
        synchronise_warp();
    }
};

// Where a block has both buffers in its shared memory.
template <int COLUMNS> struct SharedBuffers {
    const Form& form;
    char* const shared;
    int rounds = 0;

    HOST_DEVICE static int64_t buffer_bytes(int64_t pitch, int64_t chunks) {
        return 2 * chunks * COLUMNS * pitch;
    }

    DEVICE SharedBuffers(const Form& form, char* shared) : form(form), shared(shared) {}

    // What is past the end of a row is multiplied by zero, and must be a number.
    DEVICE void clear() const {
        const int words = int(buffer_bytes(form.pitch, form.chunks) / sizeof(uint4));
        for (int i = thread(); i < words; i += threads())
            reinterpret_cast<uint4*>(shared)[i] = {0, 0, 0, 0};
    }

    DEVICE char* row(int step, int chunk, int column) const {
        const int index = (step % 2 * int(form.chunks) + chunk) * COLUMNS + column;
        return shared + index * int(form.pitch);
    }
};

// Within a cluster, whose blocks store into each other's shared memory: each has buffers of its own,
// and for each chunk barriers that count the bytes that come.
//
// Four barriers take turns, though three would do. What a peer sends in a round may come while this
// block still lacks some of the round before, which that peer has seen the end of, and even of the
// one before that: backward, a peer may send before it looks. It comes no earlier, since a block
// that lacks some of a round does not finish its part in the next one.
template <int COLUMNS> struct ClusterExchange : SharedBuffers<COLUMNS> {
    using Buffers = SharedBuffers<COLUMNS>;
    using Buffers::form, Buffers::rounds;
    static constexpr int BARRIERS = 4;

    uint64_t* const barriers;
    int expected = 0;  // bytes of this round and chunk, counted by what the block itself shares

    // Two rows begin 16 banks apart, so that the lanes that load an operand meet in none.
    HOST_DEVICE static int64_t pitch(int64_t bytes) { return (bytes + 127) / 128 * 128 + 64; }
    HOST_DEVICE static int64_t barrier_bytes(int64_t chunks) {
        return BARRIERS * chunks * int64_t(sizeof(uint64_t));
    }
    HOST_DEVICE static int64_t shared_bytes(int64_t pitch, int64_t chunks) {
        return barrier_bytes(chunks) + Buffers::buffer_bytes(pitch, chunks);
    }

    DEVICE ClusterExchange(const Form& form, char* shared)
        : Buffers(form, shared + barrier_bytes(form.chunks)),
          barriers(reinterpret_cast<uint64_t*>(shared)) {}

    // Before anything is handed over.
    DEVICE void begin() const {
        Buffers::clear();
        if (thread() == 0)
            for (int i = 0; i < BARRIERS * form.chunks; ++i) barrier_init(barriers + i, 1);
        cluster_synchronise();
    }

    DEVICE uint64_t* barrier(int chunk, int round) const {
        return barriers + round % BARRIERS * int(form.chunks) + chunk;
    }

    DEVICE static uint4 load(const uint4* from) { return load_received(from); }

    // Sends what the block stored of a row: PARTS of BYTES each, the first at `own`, `apart` bytes
    // apart, of which `last` bytes exist, all blocks' together `all`. LANES neighbouring lanes, of
    // which this is one, call it for their row.
    template <int LANES, int PARTS, int BYTES>
    DEVICE void share(int chunk, const char* own, int apart, int last, int all, int lane) {
        constexpr int pieces = BYTES / sizeof(uint4), each = PARTS * pieces;
        synchronise_warp();
        // Unrolled, its addresses would take registers.
#pragma unroll 1
        for (int i = lane; i < each * (blocks_x() - 1); i += LANES) {
            const int k = i % each, from = k % pieces * int(sizeof(uint4));
            const char* const piece = own + k / pieces * apart + from;
            if (from < last)
                send(chunk, piece, load(reinterpret_cast<const uint4*>(piece)), i / each);
        }
        expected += COLUMNS * PARTS * (all - (last < BYTES ? last : BYTES));
    }

    // The same of a value that all LANES lanes have.
    template <int LANES> DEVICE void share(int chunk, float2* place, float2 value, int lane) {
        uint2 words;
        memcpy(&words, &value, sizeof words);
        if (lane == 0) *place = value;
#pragma unroll 1
        for (int i = lane; i < blocks_x() - 1; i += LANES) send(chunk, place, words, i);
        expected += COLUMNS * (blocks_x() - 1) * int(sizeof value);
    }

    // To the k-th of the other blocks.
    template <class V> DEVICE void send(int chunk, const void* place, V value, int k) const {
        const int rank = k + (k >= block_x());
        store_async(peer_address(place, rank), value, peer_address(barrier(chunk, rounds), rank));
    }

    // What this block has stored for itself its own threads see, who come here, too.
    DEVICE void arrive(int chunk) {
        synchronise();
        if (thread() == 0) barrier_expect(barrier(chunk, rounds), expected);
        expected = 0;
    }

    DEVICE void wait(int chunk) const {
        const int round = rounds - 1;
        barrier_wait(barrier(chunk, round), round / BARRIERS % 2);
    }
};

// Within a block, in its shared memory.
template <int COLUMNS> struct BlockExchange : SharedBuffers<COLUMNS> {
    using SharedBuffers<COLUMNS>::SharedBuffers;

    HOST_DEVICE static int64_t pitch(int64_t bytes) { return bytes; }
    HOST_DEVICE static int64_t shared_bytes(int64_t pitch, int64_t chunks) {
        return SharedBuffers<COLUMNS>::buffer_bytes(pitch, chunks);
    }

    DEVICE void begin() const { this->clear(); }

    DEVICE static uint4 load(const uint4* from) { return *from; }

    template <int LANES, int PARTS, int BYTES>
    DEVICE void share(int, const char*, int, int, int, int) const {}

    DEVICE void arrive(int) const { synchronise(); }
    DEVICE void wait(int) const {}
};

template <Via VIA, int COLUMNS>
using Exchange = std::conditional_t<
    VIA == Via::L2, L2Exchange<COLUMNS>,
    std::conditional_t<VIA == Via::CLUSTER, ClusterExchange<COLUMNS>, BlockExchange<COLUMNS>>>;

}  // namespace rnnkit
