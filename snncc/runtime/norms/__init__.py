"""Batch norms with statistics of each step."""
