"""The adjoint of a neuron, and what forward keeps for it."""
