"""Loops that stay loops: steps fused, and the gradient of a loop."""
