"""Exported libraries in whole numbers: formats, the reference of their arithmetic, and their C."""
