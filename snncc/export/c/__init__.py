"""Networks as C libraries in floating point."""
