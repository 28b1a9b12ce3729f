// The library's functions, called from Python.
#include <cstring>
#include "device.h"
#include "kernels.h"
#include "product.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace rnnkit {

Entries entries_half();
Entries entries_bfloat16();
Entries entries_tf32();
Entries entries_ieee();

KERNEL(THREADS, 1) void nothing() {}

}  // namespace rnnkit

using namespace rnnkit;

// The sources that this was built from.
EXPORT const char* rnnkit_source() { return RNNKIT_SOURCE; }

EXPORT int64_t rnnkit_arguments_size() { return sizeof(Arguments); }
EXPORT int64_t rnnkit_form_size() { return sizeof(Form); }

// Null where there is none; kinds in the order of rnnkit/native/recipes/cuda.py.
EXPORT const Kernel* rnnkit_persistent(const char* cell, int64_t kind, int64_t shape,
                                       int64_t backward) {
    const Entries all[] = {entries_half(), entries_bfloat16(), entries_tf32(), entries_ieee()};
    for (int k = 0; k < all[kind].count; ++k) {
        const Entry& entry = all[kind].first[k];
        if (std::strcmp(entry.cell, cell) != 0) continue;
        const Kernel& found = entry.kernels[shape][backward];
        return found.launch ? &found : nullptr;
    }
    return nullptr;
}

EXPORT int64_t rnnkit_columns(const Kernel* kernel) { return kernel->columns; }
EXPORT int64_t rnnkit_pitch(const Kernel* kernel, int64_t H) { return kernel->pitch(H); }
EXPORT int64_t rnnkit_shared_bytes(const Kernel* kernel, int64_t H, int64_t chunks) {
    return kernel->shared_bytes(H, chunks);
}

// How many clusters of so many blocks run at once, if each takes as much of a multiprocessor as a
// kernel's.
EXPORT int64_t rnnkit_clusters(int64_t blocks, int64_t shared_bytes) {
    Launch how;
    how.x = how.cluster = int(blocks);
    how.threads = THREADS;
    how.shared_bytes = int(shared_bytes);
    return clusters(nothing, how);
}

// 0, or what rnnkit_error describes.
EXPORT int rnnkit_launch(const Kernel* kernel, const Arguments* a, const Form* form) {
    return kernel->launch(*a, *form);
}

// Whether kernels can be launched here, as rnnkit_launch() says it.
EXPORT int rnnkit_ready() { return ready(); }

EXPORT const char* rnnkit_error(int code) { return launch_error(code); }
