"""Measures of rnnkit: what the compiler makes of its kernels, and how fast they run."""
