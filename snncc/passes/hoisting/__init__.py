"""A time loop taken apart: neurons, operators over all steps, and what stays a loop."""
