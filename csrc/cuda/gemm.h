// The product of cuBLAS. The library is not linked with it: who calls has one loaded, and gives its
// handle and the address of one function.
#pragma once
#include <library_types.h>
#include "device.h"

namespace rnnkit {

// cublasGemmStridedBatchedEx, with its enumerations as ints: c (m, n) = alpha * op(a) (m, k) @
// op(b) (k, n) + beta * c, for `count` of each, which lie `stride` elements apart. A matrix is
// stored by columns, `pitch` elements apart. Returns a status, 0 for success.
using Gemm = int (*)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                     const void* a, int a_type, int a_pitch, long long a_stride, const void* b,
                     int b_type, int b_pitch, long long b_stride, const void* beta, void* c,
                     int c_type, int c_pitch, long long c_stride, int count, int compute,
                     int algorithm);

// Of the numbers of cuBLAS's header, those that are used.
namespace cublas {
enum Operation { AS_IS = 0, TRANSPOSED = 1 };
enum Compute { FLOAT = 68, FLOAT_PEDANTIC = 69, DOUBLE = 70, FAST_TF32 = 77 };
enum Algorithm { DEFAULT = -1 };
}  // namespace cublas

// A kind of product: what its operands are stored as, and what it is computed and left in.
template <class T, cudaDataType TYPE, cublas::Compute COMPUTE> struct Operands {
    using S = T;
    using Sum = std::conditional_t<COMPUTE == cublas::DOUBLE, double, float>;
    static constexpr int type = TYPE, compute = COMPUTE;
    static constexpr int sum_type = COMPUTE == cublas::DOUBLE ? CUDA_R_64F : CUDA_R_32F;
};

// How float is multiplied, the call alone must say: torch sets the handle's mode by another switch
// than ours. FAST_TF32 allows TF32 in any mode, FLOAT_PEDANTIC nothing but standard arithmetic, but
// what FLOAT allows depends on the mode. A product of two numbers of 16 bits is exact in float.
using Half = Operands<__half, CUDA_R_16F, cublas::FLOAT>;
using Bfloat16 = Operands<__nv_bfloat16, CUDA_R_16BF, cublas::FLOAT>;
using Tf32 = Operands<float, CUDA_R_32F, cublas::FAST_TF32>;
using Ieee = Operands<float, CUDA_R_32F, cublas::FLOAT_PEDANTIC>;
using Double = Operands<double, CUDA_R_64F, cublas::DOUBLE>;

}  // namespace rnnkit
