"""Fine-tuning: initial weights from another run, frozen parameters.

A pattern (as of `fnmatch`) names parameters, as a whole or by their layer:
`conv1/kernel`, `conv1`, `conv*`, `*/bias`.
"""

from collections.abc import Sequence
import fnmatch

import jax
import jax.numpy as jnp

from alexnet_jax import cli, config as config_lib
from alexnet_jax.data.splits import normal
from alexnet_jax.errors import listed, UserError
from alexnet_jax.training import build, checkpoint
from alexnet_jax.training.state import (
  leaf_names,
  map_named,
  misfits,
  TrainState,
)

# The data path in the config of imported weights whose data nobody named: a
# config of photographs needs a path.
NO_DATA = 'no-data-was-named'
# Keys of the network whose other values are no reason for a note.
_FREE_KEYS = {'num_classes', 'dtype', 'kernel_init', 'bias_init', 'dropout'}
_FREE_KEYS |= {'bias_layers'}


def placeholder_names(count: int) -> list[str]:
  """Returns class names for imported weights whose classes nobody named."""
  return [f'class_{number:04}' for number in range(count)]


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
  """Returns True if two lists are equal, or as long and one of placeholders."""
  names, others = ([*map(normal, each)] for each in (names, others))
  unnamed = placeholder_names(len(names)) in (names, others)
  return names == others or (unnamed and len(names) == len(others))


def describe_classes(names: Sequence[str]) -> str:
  """Returns number and first names of classes, for messages."""
  return f'{len(names)} classes ({listed(map(repr, names))})'


def check_init(config, class_names: Sequence[str]) -> None:
  """Raises UserError if the weights of config.init.workdir do not fit."""
  init = config.init
  if not init.workdir:
    return
  state = build.state_shapes(config, len(class_names))
  other = checkpoint.open_run(init.workdir, init.checkpoint)
  wanted = _transferred(state, other.state, init.skip, init.workdir)
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
  if not init.workdir:
    return state
  other = checkpoint.open_run(init.workdir, init.checkpoint)
  console.line(
    f'starts with the weights of {init.workdir}, step {int(other.state.step)}'
  )
  keys = ['mean', 'std', 'std_rgb', 'crop_size', 'channels']
  keys = [f'data.{key}' for key in keys]
  keys += [f'model.{key}' for key in config.model if key not in _FREE_KEYS]
  before, now = map(config_lib.flatten, (other.config, config))
  for key in keys:
    if before[key] != now[key]:
      console.line(
        f'note: its config.{key} was {before[key]!r}, and is {now[key]!r} here'
      )
  return start_from(state, other.state, init.skip, init.workdir)


def matching(
  names: Sequence[str], patterns: Sequence[str], key: str
) -> frozenset[str]:
  """Returns the names that a pattern fits; UserError names the config key."""
  fits = set()
  for pattern in patterns:
    found = {n for n in names if fnmatch.filter((n, _layer(n)), pattern)}
    if not found:
      raise UserError(
        f'{key}: no parameter fits {pattern!r}; the layers are'
        f' {", ".join(sorted(set(map(_layer, names))))}'
      )
    fits |= found
  return frozenset(fits)


def frozen_names(state: TrainState, patterns: Sequence[str]) -> frozenset[str]:
  """Returns the names of the parameters that do not train; not of all."""
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

  Parameters that a pattern in `skip` fits, statistics of their layers,
  optimizer and step stay fresh. If the other, called `name`, has averaged
  weights, those are used. Raises UserError naming each that does not fit.
  """
  wanted = _transferred(state, other, skip, name)
  layers, statistics = {_layer(key) for key in wanted}, state.batch_stats
  wanted |= {key for key in leaf_names(statistics) if _layer(key) in layers}
  theirs = leaf_names(other.eval_params) | leaf_names(other.batch_stats)

  def taken(key, leaf):
    return jnp.copy(theirs[key] if key in wanted else leaf)

  params = map_named(taken, state.params)
  return state.replace(
    params=params,
    batch_stats=map_named(taken, statistics),
    # A copy, as the memory of both is donated to the next state.
    ema_params=jax.tree.map(jnp.copy, params) if state.ema_params else {},
  )


def _layer(name):
  return name.split('/')[0]


def _transferred(state, other, skip, name):
  """Returns names of the parameters that `start_from` takes from the other."""
  mine, theirs = leaf_names(state.params), leaf_names(other.eval_params)
  wanted = mine.keys() - matching(list(mine), skip, 'config.init.skip')
  if lines := misfits(
    {key: theirs[key] for key in wanted & theirs.keys()},
    {key: mine[key] for key in wanted},
  ):
    raise UserError(
      f'the weights of {name} do not fit this network:\n{lines}Leave these out'
      ' with config.init.skip (they start anew then), or take the same network'
    )
  return wanted
