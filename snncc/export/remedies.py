"""Hints for networks that a format cannot hold."""

from __future__ import annotations

OTHER_OPERATORS = (
    "Write that part with other operators, or export a program of torch, which has all of them:"
    " format='pt2'."
)
OTHER_TYPES = "Convert it in the model: a library has float32 or float64, and truth values."
EVALUATION = "Export the model in evaluation mode, with statistics of its own."
OUTSIDE = (
    "Export in evaluation mode, or draw outside of the model and pass the numbers as an input."
)
