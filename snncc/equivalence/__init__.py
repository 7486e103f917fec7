"""Evidence: a compiled model against the model it was compiled from, a pass against its input."""
