// The library's kernels, but a test may say how they share their work: of small problems, which are
// the odd ones, they share none.
#define share share_by_size
#include "cpu/sequence.h"
#undef share
#include "split.h"

namespace rnnkit {
namespace RNNKIT_ISA {

inline Sharing share(const Arguments& a, int64_t gates, int64_t bytes, const Pool& pool) {
    if (test::split != test::NONE) return {Split(test::split.load()), pool.threads};
    const Sharing found = share_by_size(a, gates, bytes, pool);
    if (found.threads > 1) test::seen |= 1 << int(found.split);
    return found;
}

}  // namespace RNNKIT_ISA
}  // namespace rnnkit

#include "cpu/kernels.cpp"
