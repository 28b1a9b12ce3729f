// Memory of exact sizes, so that one element too many is seen.
#pragma once
#include <sys/mman.h>
#include <unistd.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace test {

// Blocks from the heap; or, if fenced, such that each ends where a page begins that nobody may
// touch, since a sanitizer does not look into a masked vector instruction.
class Memory {
    struct Mapped {
        void* start;
        size_t bytes;
    };

    bool fenced;
    std::vector<void*> heap;
    std::vector<Mapped> mapped;

public:
    explicit Memory(bool fenced) : fenced(fenced) {}
    Memory(const Memory&) = delete;
    ~Memory() {
        for (void* block : heap) std::free(block);
        for (const Mapped& each : mapped) munmap(each.start, each.bytes);
    }

    // Filled with ones, which are NaN in every type; null for no bytes.
    void* take(size_t bytes) {
        if (bytes == 0) return nullptr;
        char* block;
        if (fenced) {
            const size_t page = sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page * page;
            void* start = mmap(nullptr, pages + page, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (start == MAP_FAILED) std::abort();
            mapped.push_back({start, pages + page});
            block = static_cast<char*>(start) + pages - bytes;
            if (mprotect(static_cast<char*>(start) + pages, page, PROT_NONE)) std::abort();
        } else {
            block = static_cast<char*>(std::malloc(bytes));
            heap.push_back(block);
        }
        std::memset(block, 0xff, bytes);
        return block;
    }
};

}  // namespace test
