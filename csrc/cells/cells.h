// Every cell that the kernels have, by the name under which Python registers it.
//
// CELL(name, norm, type): a type may have commas; M in it is the Math of who lists them. norm: what
// is normalised before the step, NOTHING, SUMS of products and x, or PRODUCTS.
#pragma once
#include "gru.h"
#include "lstm.h"
#include "rnn.h"

// Who wants to compile some of them only gives those.
#ifndef RNNKIT_CELLS
#define RNNKIT_CELLS(CELL)                                                  \
    CELL("rnn_tanh", NOTHING, Rnn<M, false>)                                \
    CELL("rnn_relu", NOTHING, Rnn<M, true>)                                 \
    CELL("rnn_tanh_norm", SUMS, Rnn<M, false>)                              \
    CELL("rnn_relu_norm", SUMS, Rnn<M, true>)                               \
    CELL("gru", NOTHING, Gru<M>)                                            \
    CELL("gru_norm", PRODUCTS, Gru<M>)                                      \
    CELL("gru_before", NOTHING, GruBefore<M>)                               \
    CELL("gru_before_norm", PRODUCTS, GruBefore<M>)                         \
    CELL("lstm", NOTHING, Lstm<M, false, false, false>)                     \
    CELL("lstm_norm", PRODUCTS, Lstm<M, false, true, false>)                \
    CELL("lstm_norm_carry", PRODUCTS, Lstm<M, false, true, true>)           \
    CELL("lstm_peephole", NOTHING, Lstm<M, true, false, false>)             \
    CELL("lstm_peephole_norm", PRODUCTS, Lstm<M, true, true, false>)        \
    CELL("lstm_peephole_norm_carry", PRODUCTS, Lstm<M, true, true, true>)
#endif
