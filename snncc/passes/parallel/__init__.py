"""Forms that run time in parallel: scans, sweeps, and chunks after resets."""
