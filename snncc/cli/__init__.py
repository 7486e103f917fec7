"""The commands of ``python -m snncc``."""
