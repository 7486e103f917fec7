"""State that a model holds between calls: its place, what a run reads and what it leaves behind."""
