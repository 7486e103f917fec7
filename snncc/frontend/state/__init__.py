"""What a model holds between calls: where it lies, what a run reads of it and leaves behind."""
