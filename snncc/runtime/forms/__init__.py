"""Neuron layers in forms other than the chain: sweeps, chunks after resets, and the choice."""
