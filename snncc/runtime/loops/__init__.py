"""Recurrent loops: all launches of a call laid out before the first."""
