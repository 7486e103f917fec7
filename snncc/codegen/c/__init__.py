"""C for the CPU: neurons, loops over rows, and products that skip zeros."""
