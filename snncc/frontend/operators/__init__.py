"""The meaning of each torch function, and how it is recorded."""
