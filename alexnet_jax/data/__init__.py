"""Pixels and their order: numpy, OpenCV and Grain, never jax."""
