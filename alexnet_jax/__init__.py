"""AlexNet with local response normalisation, trained with JAX."""

__version__ = '0.1.0'
