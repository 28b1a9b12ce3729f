// How a grid is laid out, and what a GPU would refuse.
#include "emulation.h"
#include "races.h"
#include <vector>

namespace rnnkit {
namespace emulation {

Launch grid;

namespace {

constexpr int MOST_THREADS = 1024, MOST_CLUSTER = 16, MOST_SHARED_BYTES = 227 << 10;
// Past each block's shared memory, all ones as that is, so that a store there is seen.
constexpr size_t FENCE = 128;

std::string error;

struct Grid {
    std::vector<Block> blocks;
    std::vector<Group> warps, clusters;
    std::vector<Thread> threads;
    size_t used, each;
    std::vector<char> memory;

    explicit Grid(const Launch& how)
        : blocks(size_t(how.x) * how.y), warps(blocks.size() * (how.threads / 32)),
          clusters(blocks.size() / how.cluster), threads(blocks.size() * how.threads),
          used(how.shared_bytes), each((used + 2 * FENCE - 1) / FENCE * FENCE),
          memory((blocks.size() + 1) * each, char(0xff)) {
        const uintptr_t begin = (uintptr_t(memory.data()) + FENCE - 1) / FENCE * FENCE;
        for (size_t k = 0; k < blocks.size(); ++k)
            blocks[k] = {int(k) % how.x, int(k) / how.x,
                         reinterpret_cast<char*>(begin + k * each), group(k, how.threads)};
        for (size_t k = 0; k < warps.size(); ++k) warps[k] = group(k, 32);
        for (size_t k = 0; k < clusters.size(); ++k)
            clusters[k] = group(k, how.threads * how.cluster);
        for (size_t k = 0; k < threads.size(); ++k) {
            threads[k].index = int(k) % how.threads;
            threads[k].block = &blocks[k / how.threads];
            threads[k].warp = &warps[k / 32];
            threads[k].cluster = &clusters[k / how.threads / how.cluster];
        }
    }

    Group group(size_t index, int count) { return {&threads[index * count], count}; }

    bool fences_stand() const {
        for (const Block& block : blocks)
            for (size_t k = used; k < each; ++k)
                if (block.shared[k] != char(0xff)) return false;
        return true;
    }
};

std::string refused(const Launch& how) {
    if (how.x < 1 || how.y < 1) return "there are no blocks";
    if (how.threads < 32 || how.threads > MOST_THREADS || how.threads % 32 != 0)
        return "a block has " + std::to_string(how.threads) + " threads, not warps of 32";
    if (how.shared_bytes < 0 || how.shared_bytes > MOST_SHARED_BYTES)
        return "a block wants " + std::to_string(how.shared_bytes) + " bytes of shared memory";
    if (how.cluster < 1 || how.cluster > MOST_CLUSTER || how.x % how.cluster != 0)
        return "clusters of " + std::to_string(how.cluster) + " blocks do not divide the grid";
    return "";
}

}  // namespace

unsigned acquired(const unsigned* flag) {
    acquire(flag);
    return *flag;
}

void released(unsigned* flag, unsigned count) {
    release(flag);
    *flag += count;
}

int run(const Launch& how, const std::function<void()>& kernel) {
    error = refused(how);
    if (!error.empty()) return 1;
    grid = how;
    Grid laid_out(how);
    watch(laid_out.threads.data(), laid_out.threads.size(), laid_out.blocks[0].shared,
          laid_out.each * laid_out.blocks.size());
    error = schedule(laid_out.threads.data(), laid_out.threads.size(), kernel);
    watch_no_longer();
    if (error.empty() && !laid_out.fences_stand()) error = "a block stored past its shared memory";
    return error.empty() ? 0 : 1;
}

}  // namespace emulation
}  // namespace rnnkit

void emulation_seed(uint64_t value) { rnnkit::emulation::seed(value); }

const char* emulation_error() { return rnnkit::emulation::error.c_str(); }
