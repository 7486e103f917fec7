"""Neurons and layers of libraries, used as their documentation does; nothing is rewritten."""
