"""``export()``: from a compiled model to the writer of a format."""
