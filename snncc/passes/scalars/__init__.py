"""Operators of torch on one lane: a neuron as a scalar recurrence."""
