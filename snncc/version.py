"""The version of snncc."""

__version__ = "0.1.0"
