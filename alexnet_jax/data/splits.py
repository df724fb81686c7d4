"""Which examples are held out, and hashes of what a source holds."""

from collections.abc import Sequence
import hashlib

import numpy as np

from alexnet_jax.errors import UserError


def held_out(
  keys: Sequence[str], labels: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
  """Marks the validation examples of a stratified split, bool [n].

  Within each class the examples are ranked by a hash of (seed, key), and the
  first `fraction` of them (rounded, at least one, never all) are held out. The
  split is a function of its arguments alone, on any platform; an added example
  moves at most one other. A fraction of 0 holds nothing out.

  Raises:
    UserError: if a class has a single example.
  """
  mask = np.zeros(len(keys), bool)
  if not fraction:
    return mask
  ranks = [_rank(seed, key) for key in keys]
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    if len(members) < 2:
      raise UserError(
        f'class {label} has a single example ({keys[members[0]]}), which cannot'
        ' be both trained on and held out; add examples or take the class away'
      )
    count = min(max(1, round(fraction * len(members))), len(members) - 1)
    ordered = sorted(members, key=lambda i: ranks[i])
    mask[ordered[:count]] = True
  return mask


def _rank(seed, key):
  # A file's name may hold bytes that are no UTF-8.
  text = f'{seed}:{key}'.encode(errors='surrogateescape')
  return hashlib.sha256(text).digest()


def digest(*parts: bytes) -> str:
  """16 hexadecimal digits of the SHA-256 of some byte strings."""
  sha = hashlib.sha256()
  for part in parts:
    sha.update(len(part).to_bytes(8, 'little'))
    sha.update(part)
  return sha.hexdigest()[:16]
