// In place of kernels.cu, for the kinds of product that a library is to lack: RNNKIT_LACKS(NO).
#include "cuda/kernels.h"

#define NO(kind) \
    Entries entries_##kind() { return {}; }

namespace rnnkit {

RNNKIT_LACKS(NO)

}  // namespace rnnkit
