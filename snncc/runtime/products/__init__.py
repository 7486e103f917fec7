"""Linear layers and convolutions over whole sequences, spikes or not."""
