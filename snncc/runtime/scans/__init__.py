"""Neurons whose time is cut into chunks that run side by side."""
