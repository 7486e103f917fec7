"""Triton: the text of kernels for GPUs."""
