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

// What CUDA takes of a launch; it points into itself.
struct Config {
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t all = {};

    explicit Config(const Launch& how) {
        all.gridDim = dim3(how.x, how.y);
        all.blockDim = dim3(how.threads);
        all.dynamicSmemBytes = how.shared_bytes;
        all.stream = static_cast<cudaStream_t>(how.stream);
        all.attrs = attributes;
        if (how.cooperative) {
            attributes[all.numAttrs].id = cudaLaunchAttributeCooperative;
            attributes[all.numAttrs++].val.cooperative = 1;
        }
        if (how.cluster > 1) {
            attributes[all.numAttrs].id = cudaLaunchAttributeClusterDimension;
            attributes[all.numAttrs].val.clusterDim.x = how.cluster;
            attributes[all.numAttrs].val.clusterDim.y = 1;
            attributes[all.numAttrs++].val.clusterDim.z = 1;
        }
    }
    Config(const Config&) = delete;
};

// How many clusters of such launches run at once; 0 where there are none, or where a newer GPU runs
// what was compiled for one that has none.
template <class Kernel> int clusters(Kernel kernel, const Launch& how) {
    constexpr int oldest = 90;
    cudaFuncAttributes compiled = {};
    const Config config(how);
    int count = 0;
    if (cudaFuncGetAttributes(&compiled, kernel) == cudaSuccess && compiled.ptxVersion >= oldest
        && allow(kernel, how) == cudaSuccess
        && cudaOccupancyMaxActiveClusters(&count, kernel, &config.all) == cudaSuccess)
        return count;
    cudaGetLastError();
    return 0;
}

// The kernel's parameters alone say which types the arguments are converted to.
template <class... P>
int launch(void (*kernel)(P...), const Launch& how, std::common_type_t<P>... arguments) {
    const Config config(how);
    cudaError_t error = allow(kernel, how);
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config.all, kernel, arguments...);
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
