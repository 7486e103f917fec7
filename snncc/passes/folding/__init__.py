"""Norms folded into what comes before them, in evaluation mode."""
