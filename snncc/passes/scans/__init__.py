"""Time cut into chunks that run side by side."""
