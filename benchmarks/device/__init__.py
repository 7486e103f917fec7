"""Benchmarks of kernels on a GPU; ``python -m benchmarks.gpu`` runs them all."""
