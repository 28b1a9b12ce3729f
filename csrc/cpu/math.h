// The functions of cells on vectors: within 2 units in the last place, exact where they saturate;
// NaN stays NaN. Where the logistic function would be subnormal it may be zero.
#pragma once
#include "vector.h"

namespace rnnkit {
namespace RNNKIT_ISA {

// exp(y) = 2^n * (1 + q), for n = round(y / ln 2). q = r + r^2 * (a polynomial in r), where
// y = n ln 2 + r: its coefficients c are the best fit of (exp(r) - 1 - r) / r^2, |r| < ln(2) / 2.
// Those of `small`, in z = x^2, are the best fit of (tanh(x) / x - 1) / z for |x| < 0.55.
template <class R> struct Exponential;
template <> struct Exponential<float> {
    static constexpr float round = 0x1.8p23f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
    static constexpr float lowest = -87.f, highest = 88.37f, saturated = 20.f, large = 16.f;
    static constexpr int bias = 127, mantissa = 23, terms = 6;
    static constexpr float c[terms] = {0.50000000134981778643f,   0.16666666681659179129f,
                                       0.041666464602026541557f,  0.0083333108895820771937f,
                                       0.0013933685862617173589f, 0.00019891030654370327738f};
    static constexpr int small_terms = 6;
    static constexpr float small[small_terms] = {
        -0.33333333294954139748f, 0.13333324185915190203f,   -0.053964696128174263852f,
        0.021818403705777290426f, -0.0085261408042810139016f, 0.0025261091953359420115f};
};
template <> struct Exponential<double> {
    static constexpr double round = 0x1.8p52, ln2_high = 0x1.62e42fefa38p-1;
    static constexpr double ln2_low = 0x1.ef35793c7673p-45;
    static constexpr double lowest = -708, highest = 709.4, saturated = 42, large = 36;
    static constexpr int bias = 1023, mantissa = 52, terms = 11;
    static constexpr double c[terms] = {
        0.5,
        0.16666666666666671008,
        0.041666666666666669767,
        0.0083333333333261120526,
        0.0013888888888883731828,
        0.00019841269874901259234,
        0.000024801587325605322782,
        2.7557255297969644392e-6,
        2.7557273570102139673e-7,
        2.5105259538448493419e-8,
        2.0914717341716375952e-9};
    static constexpr int small_terms = 11;
    static constexpr double small[small_terms] = {
        -0.33333333333333332558,   0.13333333333332712905,   -0.053968253967431738911,
        0.021869488493563038118,   -0.0088632343954180955945, 0.003592110347096176598,
        -0.0014556615775702363613, 0.00058893480724470277213, -0.00023463104528304405602,
        0.000085107079273541127234, -0.000020598556673275166703};
};

template <class R> struct Math {
    using Value = Vector<R>;
    using E = Exponential<R>;

    struct Parts {
        Value power, q;
    };

    template <int N> static INLINE Value polynomial(Value v, const R (&c)[N]) {
        Value p = broadcast<R>(c[N - 1]);
        for (int k = N - 2; k >= 0; --k) p = p * v + c[k];
        return p;
    }

    static INLINE Parts exponential(Value y) {
        const Value shifted = y * R(1.4426950408889634074) + E::round;
        const Value n = shifted - E::round;
        const Value r = (y - n * E::ln2_high) - n * E::ln2_low;
        // The last bits of `shifted` are n: moved into the exponent, they are 2^n.
        const auto exponent = (bits_of<Integers<R>>(shifted) + E::bias) << E::mantissa;
        return {bits_of<Value>(exponent), r * r * polynomial(r, E::c) + r};
    }

    static INLINE Value sigmoid(Value x) {
        Value y = -x;
        y = y < E::lowest ? broadcast<R>(E::lowest) : y;
        const auto zero = y > E::highest;
        y = zero ? broadcast<R>(E::highest) : y;
        const Parts e = exponential(y);
        // 1 + exp(y) in one rounding: power + 1 is exact unless it is large.
        const auto large = y > E::large;
        const Value one = broadcast<R>(1), sum = e.power * e.q + (large ? one : e.power + R(1));
        return zero ? Value{} : R(1) / (sum + (large ? e.power : Value{}));
    }

    // t / (t + 2) for t = exp(2|x|) - 1; near zero, where its rounding shows, a polynomial.
    static INLINE Value tanh(Value x) {
        const Value size = x < 0 ? -x : x, z = x * x;
        Value y = size + size;
        y = y > E::saturated ? broadcast<R>(E::saturated) : y;
        const Parts e = exponential(y);
        const Value t = e.power * e.q + (e.power - R(1)), h = t / (t + R(2));
        const Value near_zero = x * (z * polynomial(z, E::small)) + x;
        return size < R(0.55) ? near_zero : x < 0 ? -h : h;
    }

    static inline Value relu(Value x) { return x < 0 ? Value{} : x; }
    static inline Value positive(Value x) { return x > 0 ? Value{} + R(1) : Value{}; }
};

}  // namespace RNNKIT_ISA
}  // namespace rnnkit
