"""Estimates of what a call will take: its work by its sizes, at measured prices."""
