"""Compares the layers and arrays of a file with those of a network."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
import re

import numpy as np

from alexnet_jax.errors import UserError

_FIRST, _LAST = ('features', 'conv'), ('classifier', 'fc', 'dense', 'head')
_FLOATS = ('float32', 'float16', 'bfloat16', 'float64')


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Puts the file's name in front of the message of what is wrong with it."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  except OSError as error:
    raise UserError(
      f'{path}: cannot be read: {error.strerror or error}'
    ) from None


def misfit(expected: object, found: object, name: object = '') -> UserError:
  """Returns the error of a part of a file, called `name` in the message."""
  prefix = f'{name}: ' if name else ''
  return UserError(f'{prefix}expected {expected}, found {found}')


def natural_key(name: str) -> tuple:
  """Sorts conv2 before conv10, and `classifier.1` after `features.0`."""
  start = re.split(r'[._\d]', name)[0]
  rank = -(start in _FIRST) + (start in _LAST)
  parts = re.split(r'(\d+)', name)
  return rank, [
    (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts
  ]


def last_dense(
  widths: Mapping[str, tuple[int, int]], names: Iterable[str] = ()
) -> str:
  """Returns the name of the layer that gives the logits.

  It is the one whose outputs no other layer can read. If that holds for none
  (as many classes as hidden units) or for several, the natural order of the
  names decides.

  Args:
    widths: {dense layer: (inputs, outputs)}.
    names: of all that the file holds, for the message.

  Raises:
    UserError: if there is no dense layer.
  """
  if not widths:
    raise misfit('dense layers', ', '.join(list(names)[:10]) or 'nothing')
  ends = [
    name
    for name, (_, outputs) in widths.items()
    if all(outputs != widths[other][0] for other in widths if other != name)
  ]
  return max(ends or widths, key=natural_key)


def layer_kind(arrays: Sequence[np.ndarray]) -> str:
  """Returns `conv`, `dense` or `norm`, from the dimensions of its arrays."""
  ndims = [array.ndim for array in arrays]
  if ndims == [1, 1, 1, 1]:
    return 'norm'
  return {4: 'conv', 2: 'dense'}.get(max(ndims), 'layer of another kind')


def match_layers(
  found: Mapping[str, Mapping[str, np.ndarray]],
  wanted: Mapping[str, tuple[str, Mapping[str, tuple[int, ...]]]],
  last: str,
) -> dict[str, str]:
  """Pairs layers by their kind, in the natural order of their names.

  Args:
    found: {layer of the file: {leaf: array}}.
    wanted: {layer of the network: (kind, {leaf: shape})}, in its order; kinds
      are those of `layer_kind`.
    last: layer of the file that comes after all others; see `last_dense`.

  Returns:
    {layer of the network: layer of the file}, with all layers of both.

  Raises:
    UserError: with a table, if their numbers or a shape differ.
  """
  waiting = {}
  for name in sorted(found, key=lambda name: (name == last, natural_key(name))):
    kind = layer_kind([*found[name].values()])
    waiting.setdefault(kind, []).append(name)
  there = {
    name: {leaf: array.shape for leaf, array in leaves.items()}
    for name, leaves in found.items()
  }
  pairs, rows = {}, []
  for name, (kind, shapes) in wanted.items():
    queue = waiting.get(kind)
    pairs[name] = queue.pop(0) if queue else None
    rows.append((name, shapes, pairs[name], there.get(pairs[name])))
  for queue in waiting.values():
    rows += [(None, None, name, there[name]) for name in queue]
  if any(shapes != other_shapes for _, shapes, _, other_shapes in rows):
    table = '\n'.join(
      f'  {"fits" if shapes == other_shapes else "MISFIT"}: expected'
      f' {_describe(name, shapes)}, found {_describe(other, other_shapes)}'
      for name, shapes, other, other_shapes in rows
    )
    raise UserError(
      'its layers are not those of the network (layers are matched by their'
      f' kind, in the order of their names):\n{table}\nThe file was written'
      ' for another network, or for other images (--network, --crop_size)'
    )
  return pairs


def _describe(name, shapes):
  if name is None:
    return 'nothing'
  leaves = sorted(shapes.items(), key=lambda leaf: (-len(leaf[1]), leaf[0]))
  return f'{name} ' + ', '.join(f'{leaf} {list(s)}' for leaf, s in leaves)


def refuse_misfits(found: Mapping, wanted: Mapping) -> None:
  """Compares two dicts {name: shape}.

  Raises:
    UserError: with a table of the names and shapes that differ.
  """

  def text(shape):
    return 'nothing' if shape is None else str(list(shape))

  lines = [
    f'  {name}: expected {text(wanted.get(name))}, found'
    f' {text(found.get(name))}'
    for name in {**wanted, **found}
    if found.get(name) != wanted.get(name)
  ]
  if lines:
    raise UserError(
      'its weights are not those of the network:\n'
      + '\n'.join(lines)
      + '\nThe file was written for another network, or for other images'
    )


def to_float32(
  array: np.ndarray, name: str, *, variances: bool = False
) -> np.ndarray:
  """Returns the numbers as float32.

  Args:
    array: float32, float16, bfloat16 or float64 (which is rounded).
    name: for messages.
    variances: refuses numbers below 0.

  Raises:
    UserError: if the dtype is another, or a number is unfit or not finite in
      float32.
  """
  if array.dtype.name not in _FLOATS:
    expected = 'float32, float16, bfloat16 or float64'
    raise misfit(expected, array.dtype.name, name)
  with np.errstate(over='ignore'):
    numbers = np.asarray(array, np.float32)
  if not np.isfinite(numbers).all():
    count = numbers.size - int(np.isfinite(numbers).sum())
    found = f'{count:,} that are not, of {numbers.size:,}'
    raise misfit('finite numbers', found, name)
  if variances and (numbers < 0).any():
    raise misfit('variances', 'negative numbers', name)
  return numbers
