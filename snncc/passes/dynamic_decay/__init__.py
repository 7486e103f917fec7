"""The opt-in change of a model: a dynamic decay in place of decay and reset."""
