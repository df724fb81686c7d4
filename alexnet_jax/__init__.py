"""AlexNet with local response normalization, trained with JAX."""

import importlib

_PUBLIC = {
  'AlexNet': 'models.alexnet',
  'Run': 'run',
  'load_config': 'run',
  'open_run': 'run',
  'train': 'run',
}
__all__ = tuple(_PUBLIC)

__version__ = '0.1.0'


def __getattr__(name: str):
  """Imports what is public when it is used first."""
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)
