"""What each torch function means, and how it is recorded."""
