// The host's part of device.h.
#pragma once
#include <cuda_runtime.h>
#include "device.h"

namespace rnnkit {

// What a kernel may have only if it asks: much shared memory, large clusters.
template <class Kernel> cudaError_t allow(Kernel kernel, const Launch& how) {
    constexpr int usual_bytes = 48 << 10, portable_cluster = 8;
    cudaError_t error = cudaSuccess;
    if (how.shared_bytes > usual_bytes) {
        // As much as there is, whatever this launch takes: the kernel keeps it, for others' launches.
        int device, most;
        error = cudaGetDevice(&device);
        if (error == cudaSuccess)
            error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        if (error == cudaSuccess)
            error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    }
    if (error == cudaSuccess && how.cluster > portable_cluster)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    return error;
}

// Of how many blocks, which a launch like this one has, a cluster can be; 1 where there are none, or
// where a newer GPU runs what was compiled for one that has none.
template <class Kernel> int largest_cluster(Kernel kernel, Launch how) {
    constexpr int most = 16, oldest = 90;
    cudaFuncAttributes compiled = {};
    how.cluster = most;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(most);
    config.blockDim = dim3(how.threads);
    config.dynamicSmemBytes = how.shared_bytes;
    int size = 1;
    if (cudaFuncGetAttributes(&compiled, kernel) == cudaSuccess && compiled.ptxVersion >= oldest
        && allow(kernel, how) == cudaSuccess
        && cudaOccupancyMaxPotentialClusterSize(&size, kernel, &config) == cudaSuccess)
        return size;
    cudaGetLastError();
    return 1;
}

// The kernel's parameters alone say which types the arguments are converted to.
template <class... P>
int launch(void (*kernel)(P...), const Launch& how, std::common_type_t<P>... arguments) {
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(how.x, how.y);
    config.blockDim = dim3(how.threads);
    config.dynamicSmemBytes = how.shared_bytes;
    config.stream = static_cast<cudaStream_t>(how.stream);
    config.attrs = attributes;
    if (how.cooperative) {
        attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
        attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (how.cluster > 1) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs].val.clusterDim.x = how.cluster;
        attributes[config.numAttrs].val.clusterDim.y = 1;
        attributes[config.numAttrs++].val.clusterDim.z = 1;
    }
    cudaError_t error = allow(kernel, how);
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments...);
    // Or whoever looks at CUDA's last error next would take it for his own.
    if (error != cudaSuccess) cudaGetLastError();
    return int(error);
}

// 0, or why nothing can be launched: a driver that is older than this runtime, or none.
inline int ready() {
    int count;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) cudaGetLastError();
    return int(error);
}

inline const char* launch_error(int code) { return cudaGetErrorString(cudaError_t(code)); }

}  // namespace rnnkit
