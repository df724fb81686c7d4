"""Data sets, and batches of their images: numpy, numba, Grain; never jax."""
