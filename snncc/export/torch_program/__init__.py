"""Programs of `torch.export`, in an archive that is checked before it is read."""
