"""The plan of a compiled model, and its explanation as text, data and a page."""
