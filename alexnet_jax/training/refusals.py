"""What a run refuses: data, configs and devices that do not fit."""

import pathlib

from jax.sharding import Mesh

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training import build


def check_examples(config, training, held_out) -> None:
  """Refuses data that the config cannot train on.

  Args:
    config: of the run.
    training: source of the training split.
    held_out: source of the validation split.

  Raises:
    UserError: if there are too few examples or classes, or other ones than the
      config says.
  """
  num_classes = len(training.class_names)
  build.make_model(config, num_classes)  # refuses a wrong number of classes
  if num_classes < 2:
    raise UserError(f'{training.name} has one class; two are needed at least')
  if not held_out.num_examples:
    raise UserError(f'{held_out.name} has no examples')
  if training.num_examples < config.global_batch_size:
    raise UserError(
      f'config.global_batch_size is {config.global_batch_size}, but there are'
      f' {training.num_examples} training examples'
    )


def check_config(config, path: pathlib.Path, saved: dict | None) -> None:
  """Refuses a config that trains otherwise than the run's checkpoints did.

  Args:
    config: that the command was given.
    path: the run's folder.
    saved: the JSON object of its newest checkpoint, if there is one.

  Raises:
    UserError: naming the keys that differ.
  """
  if saved is None:
    return
  stored = config_lib.from_dict(saved['config'])
  if changes := config_lib.training_changes(stored, config):
    raise UserError(
      f'{path} was trained with another config:\n  '
      + '\n  '.join(changes)
      + '\nTake these values, or another --workdir, or delete this one'
      + (
        ' (the length of a run shapes its cosine schedule)'
        if any(change.startswith('config.num_') for change in changes)
        else ''
      )
    )


def check_data_record(path, before: dict, now: dict) -> None:
  """Refuses to go on with other batches than the run had.

  Args:
    path: the run's folder.
    before: `build.data_record` when the run began.
    now: the same of the data as it is.

  Raises:
    UserError: naming what differs.
  """
  changes = [
    f'{key}: {before.get(key)!r} -> {value!r}'
    for key, value in now.items()
    if before.get(key) != value
  ]
  if changes:
    raise UserError(
      f'the data of {path} has changed since its checkpoint:\n  '
      + '\n  '.join(changes)
      + '\nPut the data back, or take another --workdir'
    )


def check_pieces(config, mesh: Mesh, saved: dict | None) -> None:
  """Refuses other statistics of batch norms than the run had.

  They are those of a piece of the batch, and how many pieces there are depends
  on the number of devices, too.

  Args:
    config: that the command was given.
    mesh: the devices.
    saved: the JSON object of the newest checkpoint, if there is one.

  Raises:
    UserError: naming the value that gives as many pieces as before.
  """
  pieces = build.num_pieces(config, mesh)
  has_batch_norm = config.model.norm == 'batch' or config.model.norm_hidden
  before = (saved or {}).get('pieces', pieces)
  if before == pieces or not has_batch_norm:
    return
  device_batch_size = config.global_batch_size // mesh.size
  hint = (
    f'give --config.microbatch_size={device_batch_size // before}'
    if device_batch_size % before == 0
    else f'{before} pieces are not possible on {mesh.size} devices: take others'
  )
  raise UserError(
    f'the run computed its batches in {before} pieces; with {mesh.size} devices'
    f' and config.microbatch_size = {config.microbatch_size} they'
    f' are {pieces}, which changes the statistics of its batch norms: {hint}'
  )
