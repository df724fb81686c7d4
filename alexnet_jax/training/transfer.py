"""A run that starts with the weights of another, and parameters that wait.

A pattern (shell style, as of `fnmatch`) names parameters such as conv1/kernel:
`conv1/kernel` this one, `conv1` all of the layer, `conv*` those of all
convolutions, `*/bias` all biases.
"""

from collections.abc import Sequence
import fnmatch

import jax
import jax.numpy as jnp

from alexnet_jax.errors import UserError
from alexnet_jax.training.state import leaf_name
from alexnet_jax.training.state import leaf_names
from alexnet_jax.training.state import TrainState


def matching(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
  """The names that a pattern fits, as a whole or by their layer.

  Raises:
    UserError: naming the patterns that fit nothing.
  """
  found = {
    pattern: {
      name
      for name in names
      if fnmatch.fnmatchcase(name, pattern)
      or fnmatch.fnmatchcase(name.split('/')[0], pattern)
    }
    for pattern in patterns
  }
  if idle := [pattern for pattern, fits in found.items() if not fits]:
    layers = sorted({name.split('/')[0] for name in names})
    raise UserError(
      f'no parameter fits {", ".join(map(repr, idle))}; the layers are'
      f' {", ".join(layers)}'
    )
  return frozenset().union(*found.values())


def frozen_names(state: TrainState, patterns: Sequence[str]) -> frozenset[str]:
  """The parameters that do not train.

  Raises:
    UserError: if a pattern of config.init.freeze fits nothing, or all of them
      fit everything.
  """
  names = list(leaf_names(state.params))
  try:
    frozen = matching(names, patterns)
  except UserError as error:
    raise UserError(f'config.init.freeze: {error}') from error
  if len(frozen) == len(names):
    raise UserError(
      f'config.init.freeze is {tuple(patterns)!r}: nothing is left to train'
    )
  return frozen


def start_from(
  state: TrainState, other: TrainState, skip: Sequence[str], place: str
) -> TrainState:
  """The state with the weights and statistics of another.

  Optimizer and step stay fresh. Where the other has averaged weights, those
  are taken.

  Args:
    state: fresh.
    other: of a run that was trained.
    skip: patterns of parameters that stay as they are in `state`; statistics of
      batch norms go with their layer's parameters.
    place: what messages call the other run.

  Raises:
    UserError: as `taken` does.
  """
  theirs = leaf_names(other.eval_params)
  wanted = taken(state, other, skip, place)
  params = _replaced(state.params, {name: theirs[name] for name in wanted})
  statistics = leaf_names(other.batch_stats)
  kept = {
    name: leaf
    for name, leaf in statistics.items()
    if any(n.startswith(f'{name.split("/")[0]}/') for n in wanted)
  }
  return state.replace(
    params=params,
    batch_stats=_replaced(state.batch_stats, kept),
    # A copy, as the memory of both is donated to the next state.
    ema_params=jax.tree.map(jnp.copy, params) if state.ema_params else {},
  )


def taken(
  state: TrainState, other: TrainState, skip: Sequence[str], place: str
) -> list[str]:
  """Names of the parameters that `start_from` takes; the states may be shapes.

  Raises:
    UserError: naming every parameter that the other lacks or has in another
      shape, unless it is skipped.
  """
  mine, theirs = leaf_names(state.params), leaf_names(other.eval_params)
  try:
    skipped = matching(list(mine), skip)
  except UserError as error:
    raise UserError(f'config.init.skip: {error}') from error
  wanted = {name: w for name, w in mine.items() if name not in skipped}
  misfits = [
    f'  {name}: {_shape(theirs.get(name))} there, {_shape(w)} here'
    for name, w in sorted(wanted.items())
    if _shape(theirs.get(name)) != _shape(w)
  ]
  if misfits:
    raise UserError(
      f'the weights of {place} do not fit this network:\n'
      + '\n'.join(misfits)
      + '\nLeave these out with config.init.skip (they start anew then), or'
      ' take the same network'
    )
  return sorted(wanted)


def _shape(leaf):
  return 'nothing' if leaf is None else list(leaf.shape)


def _replaced(tree, leaves):
  """The tree with some leaves replaced, by name; all of them copied."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.copy(leaves.get(leaf_name(path), leaf)), tree
  )
