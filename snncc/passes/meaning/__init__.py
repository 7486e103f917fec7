"""What a neuron means: its states, spikes and resets, read off one step."""
