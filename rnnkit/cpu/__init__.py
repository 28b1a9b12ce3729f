"""Native kernels for CPU tensors (csrc/cpu); `rnnkit.native` builds and loads them."""
