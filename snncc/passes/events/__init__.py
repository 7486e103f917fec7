"""Networks as queues of spikes: which neurons allow it, what is between them, the replacement."""
