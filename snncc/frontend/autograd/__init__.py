"""Gradients that users write: autograd functions, hooks and checkpoints."""
