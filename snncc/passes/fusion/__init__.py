"""Fusion into one kernel: all steps, and the operators at both edges of a neuron."""
