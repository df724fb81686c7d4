"""Data sets, and batches of their images: numpy, numba, Grain; never jax."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
