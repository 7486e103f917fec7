"""The Neuromorphic Intermediate Representation (NIR): networks of other tools, read and written."""
