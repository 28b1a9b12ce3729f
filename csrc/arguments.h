// What a call brings. rnnkit/native/arguments.py fills it in this order, eight bytes a field.
#pragma once
#include <cstdint>

namespace rnnkit {

// Pointers are null where an argument is absent. Shapes are those of rnnkit.ops.scan; tensors are
// dense but for x, m, lengths and resets, which come with strides in elements (x's and m's units
// are dense). Results of the forward scan are arguments of the backward one.
struct Arguments {
    int64_t T, B, N, H, E;
    int64_t runs, reverse;        // directions of equal runs of groups, bit k for run k
    int64_t norm, of_sum;         // 0 for none, 1 per gate, 2 all gates of a product together
    double eps;
    const void* x;
    int64_t x_t, x_b, x_n, x_g;
    const void *w, *b, *s0, *p;
    const void* m;
    int64_t m_bytes;              // whether m is in bytes, not of x's type
    int64_t m_t, m_b, m_n, m_e;
    const void* d;
    const int64_t* lengths;
    int64_t lengths_b, lengths_n;
    const uint8_t* resets;
    int64_t resets_t, resets_b, resets_n;
    void *output, *cells, *last;
    // What recurrent_gates gives, in float for bfloat16. But the first `summed` gates, of all of
    // which dr = dx, are added to x, which must be dense, and have no place in products.
    void *products, *scales;
    int64_t summed;
    int64_t activated;            // whether forward may leave the activations of gates in x, or did
    const void *doutput, *dcells, *dlast;
    void *dx, *dw, *db, *ds0, *dp;
    // A whole layer: x is computed of the input (T, B, I), its weights (N, G * H, I) and bias, and
    // nobody wants dx, which is null.
    const void *input, *w_ih, *b_ih;
    int64_t I;
    void *dinput, *dw_ih, *db_ih;
    // With x_gain, the input's part is normalised before the gain, and b_ih comes after it: x holds
    // what normalise gives, and x_scales (T, B, N, G) the scales.
    const void* x_gain;
    void *x_scales, *dx_gain;
    // Filled in by the library: the rows of each group, the longest first, and their lengths.
    const int64_t *order, *valid;
};

}  // namespace rnnkit
