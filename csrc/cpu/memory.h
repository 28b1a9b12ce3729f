// Scratch memory.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace rnnkit {
namespace RNNKIT_ISA {

// Blocks that calls leave for the next one: new memory would cost more than what is done in it.
class Blocks {
    static constexpr int MOST = 64;
    static constexpr int64_t LEAST_BYTES = 1 << 9, MOST_BYTES = 1 << 26;

    struct Block {
        void* data;
        int64_t bytes;
    };

    Block free_[MOST];
    int count_ = 0;
    int64_t bytes_ = 0;
    bool busy_ = false;

    // Never waits: in a forked child nobody may be there to let go.
    bool enter() { return !__atomic_test_and_set(&busy_, __ATOMIC_ACQUIRE); }
    void leave() { __atomic_clear(&busy_, __ATOMIC_RELEASE); }

public:
    // A block of at least so many bytes; its size is put back.
    void* take(int64_t& bytes) {
        if (bytes >= LEAST_BYTES && enter()) {
            void* found = nullptr;
            for (int k = count_ - 1; k >= 0 && found == nullptr; --k) {
                if (free_[k].bytes < bytes || free_[k].bytes > 2 * bytes) continue;
                found = free_[k].data;
                bytes_ -= bytes = free_[k].bytes;
                for (--count_; k < count_; ++k) free_[k] = free_[k + 1];
            }
            leave();
            if (found) return found;
        }
        constexpr int64_t line = 64;
        bytes = (bytes + line - 1) / line * line;
        return std::aligned_alloc(line, bytes);
    }

    void put(void* data, int64_t bytes) {
        if (bytes >= LEAST_BYTES && enter()) {
            const bool room = count_ < MOST && bytes_ + bytes <= MOST_BYTES;
            if (room) {
                free_[count_++] = {data, bytes};
                bytes_ += bytes;
            }
            leave();
            if (room) return;
        }
        std::free(data);
    }
};

inline Blocks blocks;

// An array of its own, uninitialised, aligned to cache lines, with room for one vector past its end.
template <class T> struct Array {
    T* data = nullptr;
    int64_t bytes = 0;

    explicit Array(int64_t count) : bytes(count * int64_t(sizeof(T)) + 64) {
        if (count > 0) data = static_cast<T*>(blocks.take(bytes));
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    Array(Array&& other) noexcept : data(other.data), bytes(other.bytes) { other.data = nullptr; }
    ~Array() {
        if (data) blocks.put(data, bytes);
    }

    operator T*() const { return data; }
    T* operator+(int64_t k) const { return data + k; }
    T& operator[](int64_t k) const { return data[k]; }
    void zero(int64_t count) const {
        if (count > 0) std::memset(data, 0, count * sizeof(T));
    }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
