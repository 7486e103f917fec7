"""A network of known sizes: what libraries in C, CUDA and whole numbers are written from."""
