"""Compiled code for CPUs, called by XLA and by Numba kernels; knows nothing of PinSage."""
