// Vectors of the instruction set that this file is compiled for, in GCC's vector extension, which
// GCC and Clang share over all machines; only partial loads and stores need intrinsics.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// For what is called in the innermost loops: a call would spill every vector.
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace rnnkit {
namespace RNNKIT_ISA {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
constexpr int REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
constexpr int REGISTERS = 16;
#else
constexpr int BYTES = 16;
#if defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
#endif

template <class R> struct Types;
template <> struct Types<float> {
    using Integer = int32_t;
};
template <> struct Types<double> {
    using Integer = int64_t;
};

template <class T, int COUNT> struct Vectors {
    typedef T type __attribute__((vector_size(COUNT * sizeof(T))));
    typedef T unaligned __attribute__((vector_size(COUNT * sizeof(T)), aligned(alignof(T))));
};

// How many values of R a vector has.
template <class R> constexpr int LANES = BYTES / sizeof(R);
template <class R> using Vector = typename Vectors<R, LANES<R>>::type;
template <class R> using Integers = typename Vectors<typename Types<R>::Integer, LANES<R>>::type;

// Storage of half the width; the arithmetic is in float.
struct bfloat16 {
    uint16_t bits;
};
template <class S> struct RealOf {
    using type = S;
};
template <> struct RealOf<bfloat16> {
    using type = float;
};
template <class S> using Real = typename RealOf<S>::type;

template <class To, class From> inline To bits_of(From v) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &v, sizeof(to));
    return to;
}

template <class R> inline Vector<R> broadcast(R value) { return Vector<R>{} + value; }

// The first lanes of a vector, which a partial load or store touches; the others load zeros.
template <class R> struct Part {
    int count;
#if defined(__AVX512F__)
    uint32_t mask;
    explicit Part(int64_t left) : count(left < LANES<R> ? int(left) : LANES<R>) {
        mask = (1u << count) - 1;
    }
#else
    explicit Part(int64_t left) : count(left < LANES<R> ? int(left) : LANES<R>) {}
#endif
    bool whole() const { return count == LANES<R>; }
};

template <class R> inline Vector<R> load_whole(const R* from) {
    return *reinterpret_cast<const typename Vectors<R, LANES<R>>::unaligned*>(from);
}

template <class R> inline void store_whole(R* to, Vector<R> v) {
    *reinterpret_cast<typename Vectors<R, LANES<R>>::unaligned*>(to) = v;
}

#if defined(__AVX512F__)

inline Vector<float> load(const float* from, Part<float> part) {
    return (Vector<float>)_mm512_maskz_loadu_ps(__mmask16(part.mask), from);
}
inline Vector<double> load(const double* from, Part<double> part) {
    return (Vector<double>)_mm512_maskz_loadu_pd(__mmask8(part.mask), from);
}
inline void store(float* to, Vector<float> v, Part<float> part) {
    _mm512_mask_storeu_ps(to, __mmask16(part.mask), (__m512)v);
}
inline void store(double* to, Vector<double> v, Part<double> part) {
    _mm512_mask_storeu_pd(to, __mmask8(part.mask), (__m512d)v);
}
template <class R> inline Vector<R> first(Vector<R> v, Part<R> part);
template <> inline Vector<float> first<float>(Vector<float> v, Part<float> part) {
    return (Vector<float>)_mm512_maskz_mov_ps(__mmask16(part.mask), (__m512)v);
}
template <> inline Vector<double> first<double>(Vector<double> v, Part<double> part) {
    return (Vector<double>)_mm512_maskz_mov_pd(__mmask8(part.mask), (__m512d)v);
}

#else

template <class R> inline Vector<R> load(const R* from, Part<R> part) {
    if (part.whole()) return load_whole(from);
    R values[LANES<R>] = {};
    for (int k = 0; k < part.count; ++k) values[k] = from[k];
    return load_whole(values);
}

template <class R> inline void store(R* to, Vector<R> v, Part<R> part) {
    if (part.whole()) return store_whole(to, v);
    R values[LANES<R>];
    store_whole(values, v);
    for (int k = 0; k < part.count; ++k) to[k] = values[k];
}

// The vector with zeros in the lanes outside the part.
template <class R> inline Vector<R> first(Vector<R> v, Part<R> part) {
    if (part.whole()) return v;
    R values[LANES<R>];
    store_whole(values, v);
    return load(values, part);
}

#endif

// A narrow integer of every lane, from any storage; zeros outside the part.
template <class N> inline Integers<float> load_narrow(const N* from, Part<float> part) {
    typename Vectors<N, LANES<float>>::type values = {};
    if (part.whole())
        std::memcpy(&values, from, sizeof(values));
    else
        for (int k = 0; k < part.count; ++k) values[k] = from[k];
    return __builtin_convertvector(values, Integers<float>);
}

inline Vector<float> load(const bfloat16* from, Part<float> part) {
    const uint16_t* narrow = reinterpret_cast<const uint16_t*>(from);
    return bits_of<Vector<float>>(load_narrow(narrow, part) << 16);
}

// Rounded to the nearest, to even at a tie; NaN stays NaN.
inline void store(bfloat16* to, Vector<float> v, Part<float> part) {
    using Narrow = typename Vectors<uint16_t, LANES<float>>::type;
    using Wide = typename Vectors<uint32_t, LANES<float>>::type;
    const Wide bits = bits_of<Wide>(v);
    const Wide rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Wide quiet = (bits >> 16) | 0x40u;
    const Narrow narrow = __builtin_convertvector(v != v ? quiet : rounded, Narrow);
    if (part.whole())
        std::memcpy(to, &narrow, sizeof(narrow));
    else
        for (int k = 0; k < part.count; ++k) to[k].bits = narrow[k];
}

// A mask in bytes.
inline Vector<float> load(const uint8_t* from, Part<float> part) {
    return __builtin_convertvector(load_narrow(from, part), Vector<float>);
}
inline Vector<double> load(const uint8_t* from, Part<double> part) {
    Vector<double> v = {};
    for (int k = 0; k < part.count; ++k) v[k] = from[k];
    return v;
}

// Copies values from one type of storage to another; R is that of the arithmetic.
template <class R, class To, class From> inline void copy(To* to, const From* from, int64_t count) {
    for (int64_t j = 0; j < count; j += LANES<R>) {
        const Part<R> part(count - j);
        store(to + j, load(from + j, part), part);
    }
}

// The sum over all lanes, by halves: the same order whatever was loaded.
template <class R, int COUNT> INLINE R sum_lanes(const typename Vectors<R, COUNT>::type& v) {
    if constexpr (COUNT == 1) {
        return v[0];
    } else {
        typename Vectors<R, COUNT / 2>::type low, high;
        std::memcpy(&low, &v, sizeof(low));
        std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
        return sum_lanes<R, COUNT / 2>(low + high);
    }
}
template <class R> INLINE R sum(const Vector<R>& v) { return sum_lanes<R, LANES<R>>(v); }

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
