"""``export()``: which writer takes a compiled model, and what it has to know of it."""
