// Scratch memory, aligned to cache lines.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace rnnkit {
namespace RNNKIT_ISA {

// An array of its own, uninitialised, with room for one vector beyond its end.
template <class T> struct Array {
    T* data = nullptr;

    Array() = default;
    explicit Array(int64_t count) {
        const int64_t line = 64, bytes = (count * int64_t(sizeof(T)) + 2 * line - 1) / line * line;
        data = static_cast<T*>(std::aligned_alloc(line, bytes));
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    Array(Array&& other) noexcept : data(other.data) { other.data = nullptr; }
    Array& operator=(Array&& other) noexcept {
        T* const mine = data;
        data = other.data;
        other.data = mine;
        return *this;
    }
    ~Array() { std::free(data); }

    operator T*() const { return data; }
    T* operator+(int64_t k) const { return data + k; }
    T& operator[](int64_t k) const { return data[k]; }
    void zero(int64_t count) const { std::memset(data, 0, count * sizeof(T)); }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
