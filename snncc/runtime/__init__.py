"""Build, cache and launch kernels; torch operators around them; a pool of memory for results."""
