"""Networks that take their input step by step and keep their state in between."""
