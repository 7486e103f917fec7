"""A network as a library for GPUs of NVIDIA: kernels in CUDA C++, and C that launches them."""
