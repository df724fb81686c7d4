"""Fine-tuning: initial weights from another run, frozen parameters.

A pattern (shell style, as of `fnmatch`) names parameters such as conv1/kernel:
`conv1/kernel` this one, `conv1` all of the layer, `conv*` those of all
convolutions, `*/bias` all biases.
"""

from collections.abc import Sequence
import fnmatch

import jax
import jax.numpy as jnp

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training.state import leaf_name
from alexnet_jax.training.state import leaf_names
from alexnet_jax.training.state import TrainState

# The data path in the config of imported weights whose data nobody named: a
# config of photographs needs a path.
NO_DATA = 'no-data-was-named'
# Keys that may differ from those that the weights were trained with.
_FREE_KEYS = ('num_classes', 'dtype', 'kernel_init', 'bias_init', 'bias_layers')
_FREE_KEYS += ('dropout',)


def placeholder_names(count: int) -> list[str]:
  """Returns class names for imported weights whose classes nobody named."""
  return [f'class_{number:04}' for number in range(count)]


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
  """Returns True if two lists of names can be of the same classes.

  They are equal, or as long and one of them has placeholders.
  """
  names, others = list(names), list(others)
  placeholders = placeholder_names(len(names))
  return names == others or (
    len(names) == len(others) and placeholders in (names, others)
  )


def describe_classes(names: Sequence[str]) -> str:
  """Returns number and first names of classes, for messages."""
  first = ', '.join(map(repr, names[:5]))
  return f'{len(names)} classes ({first}{", ..." if len(names) > 5 else ""})'


def check_init(config, class_names: Sequence[str]) -> None:
  """Raises UserError if the weights of config.init.workdir do not fit."""
  init = config.init
  if not init.workdir:
    return
  state = build.state_shapes(config, len(class_names))
  other = checkpoint.open_run(init.workdir, init.checkpoint)
  wanted = transferred(state, other.state, init.skip, init.workdir)
  same = same_classes(class_names, other.class_names)
  if 'head/kernel' in wanted and not same:
    raise UserError(
      f'{init.workdir} has {describe_classes(other.class_names)}, the data here'
      f' {describe_classes(class_names)}: its outputs would mean something'
      """ else; give --config.init.skip="('head',)" for new ones"""
    )


def first_state(
  config, class_names: Sequence[str], console: cli.Console
) -> TrainState:
  """Returns a fresh state, or one with the weights of another run."""
  model = build.make_model(config, len(class_names))
  state = build.make_state(config, model)
  init = config.init
  if init.workdir:
    other = checkpoint.open_run(init.workdir, init.checkpoint)
    state = start_from(state, other.state, init.skip, init.workdir)
    console.line(
      f'starts with the weights of {init.workdir}, step {int(other.state.step)}'
    )
    keys = [f'data.{k}' for k in ('mean', 'std', 'std_rgb', 'crop_size')]
    keys += [f'model.{k}' for k in config.model if k not in _FREE_KEYS]
    before, now = map(config_lib.flatten, (other.config, config))
    for key in keys:
      if before[key] != now[key]:
        console.line(
          f'note: its config.{key} was {before[key]!r}, and is {now[key]!r}'
          ' here'
        )
  return state


def matching(
  names: Sequence[str], patterns: Sequence[str], key: str = 'patterns'
) -> frozenset[str]:
  """Returns the names that a pattern fits, as a whole or by their layer.

  Raises UserError naming the config key and the patterns that fit nothing.
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
      f'{key}: no parameter fits {", ".join(map(repr, idle))}; the layers are'
      f' {", ".join(layers)}'
    )
  return frozenset().union(*found.values())


def frozen_names(state: TrainState, patterns: Sequence[str]) -> frozenset[str]:
  """Returns the names of the parameters that do not train.

  Raises UserError if a pattern fits nothing, or they fit everything.
  """
  names = list(leaf_names(state.params))
  frozen = matching(names, patterns, 'config.init.freeze')
  if len(frozen) == len(names):
    raise UserError(
      f'config.init.freeze is {tuple(patterns)!r}: nothing is left to train'
    )
  return frozen


def start_from(
  state: TrainState, other: TrainState, skip: Sequence[str], name: str
) -> TrainState:
  """Returns the state with the weights and statistics of another.

  Optimizer and step stay fresh. If the other has averaged weights, those are
  used.

  Args:
    skip: patterns of parameters that stay as they are in `state`; statistics of
      batch norms go with their layer's parameters.
    name: of the other run, for messages.

  Raises:
    UserError: as `transferred` does.
  """
  theirs = leaf_names(other.eval_params)
  wanted = transferred(state, other, skip, name)
  params = _replaced(state.params, {key: theirs[key] for key in wanted})
  statistics = leaf_names(other.batch_stats)
  kept = {
    key: leaf
    for key, leaf in statistics.items()
    if any(w.startswith(f'{key.split("/")[0]}/') for w in wanted)
  }
  return state.replace(
    params=params,
    batch_stats=_replaced(state.batch_stats, kept),
    # A copy, as the memory of both is donated to the next state.
    ema_params=jax.tree.map(jnp.copy, params) if state.ema_params else {},
  )


def transferred(
  state: TrainState, other: TrainState, skip: Sequence[str], name: str
) -> list[str]:
  """Returns names of the parameters that `start_from` takes from the other.

  Raises UserError naming each that the other lacks or has in another shape.
  """
  mine, theirs = leaf_names(state.params), leaf_names(other.eval_params)
  skipped = matching(list(mine), skip, 'config.init.skip')
  wanted = {key: w for key, w in mine.items() if key not in skipped}
  misfits = [
    f'  {key}: {_shape(theirs.get(key))} there, {_shape(w)} here'
    for key, w in sorted(wanted.items())
    if _shape(theirs.get(key)) != _shape(w)
  ]
  if misfits:
    raise UserError(
      f'the weights of {name} do not fit this network:\n'
      + '\n'.join(misfits)
      + '\nLeave these out with config.init.skip (they start anew then), or'
      ' take the same network'
    )
  return sorted(wanted)


def _shape(leaf):
  return 'nothing' if leaf is None else list(leaf.shape)


def _replaced(tree, leaves):
  """Returns a copy of the tree with some leaves replaced, by name."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.copy(leaves.get(leaf_name(path), leaf)), tree
  )
