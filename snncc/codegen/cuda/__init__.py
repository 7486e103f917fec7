"""CUDA C++: the text of kernels for GPUs."""
