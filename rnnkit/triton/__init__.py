"""The Triton backend: kernels that take any cell, and their launchers."""
