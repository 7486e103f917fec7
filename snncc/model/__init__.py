"""The compiled model, and what it is opened as: streams, processes, measurements of convergence."""
