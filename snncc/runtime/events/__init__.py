"""Networks that run as queues of spikes, by C kernels."""
