"""Networks of other tools: the Neuromorphic Intermediate Representation (NIR)."""
