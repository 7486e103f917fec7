"""The levels of the program between the user's code and the kernels."""
