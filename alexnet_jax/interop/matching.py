"""Finds a network's layers in a file that calls them otherwise."""

from collections.abc import Mapping
from collections.abc import Sequence
import re

from alexnet_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
_FIRST, _LAST = ('features', 'conv'), ('classifier', 'fc', 'dense', 'head')


def natural_key(name: str) -> tuple:
  """Sorts conv2 before conv10, and `classifier.1` after `features.0`."""
  start = re.split(r'[._\d]', name)[0]
  place = -(start in _FIRST) + (start in _LAST)
  parts = re.split(r'(\d+)', name)
  return place, [
    (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts
  ]


def last_dense(widths: Mapping[str, tuple[int, int]]) -> str:
  """The layer that gives the logits, whatever it is called.

  It is the one whose outputs no other layer can read. Where that is true of
  none, as with as many classes as hidden units, or of several, the natural
  order of the names decides.

  Args:
    widths: {dense layer: (inputs, outputs)}; not empty.
  """
  ends = [
    name
    for name, (_, outputs) in widths.items()
    if all(outputs != widths[other][0] for other in widths if other != name)
  ]
  return max(ends or widths, key=natural_key)


def by_order(
  found: Mapping[str, tuple[str, Shapes]],
  wanted: Sequence[tuple[str, str, Shapes]],
  last: str,
) -> dict[str, str]:
  """Pairs layers by their kind, in the natural order of their names.

  Args:
    found: {layer of the file: (kind, {leaf: shape})}.
    wanted: (layer of the network, kind, {leaf: shape}), in its order.
    last: layer of the file that is after the others; see `last_dense`.

  Returns:
    {layer of the network: layer of the file}; every one of both is there.

  Raises:
    UserError: with a table, if their numbers or a shape differ.
  """
  waiting = {}
  for name in sorted(found, key=lambda name: (name == last, natural_key(name))):
    waiting.setdefault(found[name][0], []).append(name)
  pairs, rows, fits = {}, [], True
  for name, kind, shapes in wanted:
    theirs = waiting[kind].pop(0) if waiting.get(kind) else None
    there = found[theirs][1] if theirs else None
    good = there is not None and dict(there) == dict(shapes)
    fits &= good
    rows.append(_row(name, shapes, theirs, there, good))
    pairs[name] = theirs
  for names in waiting.values():
    fits &= not names
    rows += [_row(None, None, name, found[name][1], False) for name in names]
  if not fits:
    raise UserError(
      'its layers are not those of the network (layers are matched by their'
      ' kind, in the order of their names):\n'
      + '\n'.join(rows)
      + '\nThe file was written for another network, or for other images'
      ' (--network, --crop_size)'
    )
  return pairs


def _row(name, shapes, theirs, there, good):
  left = f'{name} {_text(shapes)}' if name else 'nothing'
  right = f'{theirs} {_text(there)}' if theirs else 'nothing'
  return f'  {"fits" if good else "MISFIT"}: expected {left}, found {right}'


def _text(shapes):
  leaves = sorted(shapes.items(), key=lambda leaf: (-len(leaf[1]), leaf[0]))
  return ', '.join(f'{leaf} {list(shape)}' for leaf, shape in leaves)
