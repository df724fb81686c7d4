"""AlexNet with local response normalization, trained with JAX."""

import lazy_loader

# What is public stands in __init__.pyi, and is imported when it is used first.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = '0.2.0'
