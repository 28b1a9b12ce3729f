"""torch.nn's own kernels (oneDNN, cuDNN, ATen) as a backend, differentiated by torch itself."""
