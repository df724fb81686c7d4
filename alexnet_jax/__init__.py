"""AlexNet with local response normalization, trained with JAX."""

__version__ = '0.1.0'
