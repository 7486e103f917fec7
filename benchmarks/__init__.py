"""Benchmarks: scripts that time variants side by side, such as ``python -m benchmarks.neuron``."""
