"""CUDA C++ kernels (csrc/cuda) for sizes whose weights one multiprocessor cannot hold."""
