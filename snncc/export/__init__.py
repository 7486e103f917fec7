"""Ahead-of-time export: a network as a library that runs without Python."""
