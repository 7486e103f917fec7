"""A sequence graph as a program for some of its steps, the states explicit."""
