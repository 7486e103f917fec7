"""The meaning of a neuron: its states, spikes and resets, read off one step."""
