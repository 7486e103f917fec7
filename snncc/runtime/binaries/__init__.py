"""From kernel sources to loaded functions, cached on disk."""
