"""Calls of kernels on a GPU."""
