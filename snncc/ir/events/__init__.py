"""Networks that run as queues of spikes: the structure, its random numbers, its reference."""
