"""C kernels of networks that run as queues of spikes."""
