"""Data sets, and batches of their images: numpy, numba, Grain; never jax."""

import importlib

_PUBLIC = {
  'BatchOptions': 'batches',
  'eval_batches': 'batches',
  'make_source': 'sources',
  'train_batches': 'batches',
}
__all__ = tuple(_PUBLIC)


def __getattr__(name: str):
  """Imports what is public when it is used first."""
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)
