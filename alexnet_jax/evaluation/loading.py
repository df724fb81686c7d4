"""Loads the network of a run, and opens the data that it is measured on."""

import collections
from collections.abc import Sequence
import dataclasses
import sys

import jax
import numpy as np

from alexnet_jax import validation
from alexnet_jax.data import loader as loader_lib, splits
from alexnet_jax.data.folder import FolderSource, ImageList
from alexnet_jax.errors import UserError
from alexnet_jax.training import build, checkpoint, parallel, transfer

_DIVIDED = ('folder', 'tar', 'parquet')  # where they have no validation split


@dataclasses.dataclass(frozen=True)
class Network(checkpoint.OpenRun):
  """A trained network on the devices of this process."""

  data_path: str  # '': where it was in training
  mesh: jax.sharding.Mesh
  steps: build.Steps

  def to_devices(self, batch: dict) -> dict:
    """Starts the transfer of a batch."""
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)


def load_network(
  workdir: str,
  which: str = 'final',
  data_path: str = '',
  top: int = 5,
  crops: int = 1,
  data_source: str = '',
) -> Network:
  """Loads a checkpoint of a run, which may be training at the same time.

  Args:
    workdir: the run's folder.
    which: `final`, `newest`, `best` or the number of a step.
    data_path: where the data is now; '': where it was in training.
    top, crops: see `build.make_steps`.
    data_source: KIND or tfds:NAME, of other data than that of the training.
  """
  if top < 1 or crops not in (1, 10):
    raise UserError(f'top is {top} (from 1), crops is {crops} (1 or 10)')
  # Of this process: process 0 alone draws the report of a run of several.
  mesh = parallel.make_mesh(local=True)
  run = checkpoint.open_run(workdir, which)
  data_path = _set_data(run.config, data_path, data_source)
  mean = build.stored_mean(run.config, workdir)
  steps = build.make_steps(run.config, mesh, mean, top=top, crops=crops)
  run = dataclasses.replace(run, state=parallel.replicate(run.state, mesh))
  return Network(**vars(run), data_path=data_path, mesh=mesh, steps=steps)


def _set_data(config, path, source):
  """Writes into config.data where the data is; returns `Network.data_path`."""
  data, given = config.data, []
  if source:
    kind, _, name = source.partition(':')
    other, given = name or data.tfds_name, ['data.tfds_name'] * bool(name)
    if (kind, other) != (data.source, data.tfds_name):
      data.path = data.path if kind == data.source else ''
      # Those of the training divide another set.
      data.tfds_train_split, data.tfds_eval_split = 'train', 'validation'
      data.folds = data.fold = 0
    data.source, data.tfds_name = kind, other
  path = '' if path == data.path else path
  data.path = path or data.path
  try:
    if path or source:
      validation.validate(config, given + ['data.path'] * bool(path))
  except UserError as error:
    raise UserError(f'{error} (here: --data_source, --data_path)') from error
  return path


def warn_of_crops(network: Network, crops: int) -> None:
  """Prints a warning where ten crops are of no use for this network."""
  data, start = network.config.data, f'warning: {network.workdir}:'
  if crops > 1 and not data.random_flip:
    _say(
      f'{start} half of the ten crops are mirrored, and this network was not'
      ' trained on mirrored images (config.data.random_flip is False)'
    )
  if crops > 1 and data.crop_size == data.resize_size:
    _say(
      f'{start} the ten crops are two: config.data.crop_size and resize_size'
      f' are both {data.crop_size}'
    )


def _say(text):
  print(text, file=sys.stderr)


def open_split(network: Network, split: str) -> tuple[loader_lib.Loader, bool]:
  """Returns (loader of a split, whether it is known to be other data).

  The data of the training is divided as there, wherever it lies now. Other data
  is measured whole if it has no validation split of its own. Raises UserError
  if the data is not there.
  """
  config = network.config
  if config.data.path == transfer.NO_DATA:
    raise UserError(
      f'{network.workdir} holds imported weights, and no data was named: give'
      f' --data_path DIR (config.data.source is {config.data.source}), or'
      ' load them again with --data_source'
    )
  if is_other := _is_other_data(network):
    config = config.copy_and_resolve_references()
    config.data.val_fraction, config.data.folds = 0.0, 0
    split = 'all' if split == 'validation' else split
  try:
    loader = build.make_loader(
      config, split, skip_hint='repair or delete it, or use `predict`'
    )
  except UserError as error:
    if str(error).startswith('split'):
      raise
    raise UserError(f'{error} (for this command: --data_path DIR)') from error
  if is_other:
    source = loader.source
    _say(
      f'note: {source.name} is not the data of the training; all'
      f' {source.num_examples:,} examples in it are measured'
    )
  return loader, is_other


def make_eval_loader(network: Network, split: str) -> loader_lib.Loader:
  """Returns a loader of a split, see `open_split`, with the network's classes.

  A folder of other data may lack some. Raises UserError for other classes.
  """
  loader, is_other = open_split(network, split)
  classes, source = [*map(splits.normal, network.class_names)], loader.source
  names = [*map(splits.normal, source.class_names)]
  is_part = set(names) < set(classes)
  if is_other and is_part and isinstance(source, FolderSource):
    loader.numbers = {i: classes.index(name) for i, name in enumerate(names)}
    _say(
      f'note: it has {len(names):,} of the {len(classes):,} classes; the others'
      ' are predicted as well (`evaluate --subset`: they are not)'
    )
    names = classes
  if not transfer.same_classes(names, classes):
    hint = '`evaluate --subset` takes data with a part of the classes; '
    raise UserError(
      f'{source.name} has {transfer.describe_classes(names)}, but the network'
      f' has {transfer.describe_classes(classes)}; names and order must be the'
      f' same ({hint * is_part}imported weights: load them again with'
      ' --class_names FILE)'
    )
  if names != classes:
    _say(
      f'note: the classes of {network.workdir} have no names; those of'
      f' {source.name} are used, in its order'
    )
  return loader


def open_subset(
  network: Network, split: str
) -> tuple[Network, loader_lib.Loader]:
  """Returns a network with the classes of some examples alone, and a loader.

  Classes, matched by name, that no example of the split has are left out of the
  last layer: probabilities, ranks and averages are over the others. Raises
  UserError if the network lacks a class.
  """
  loader, _ = open_split(network, split)
  source, classes = loader.source, network.class_names
  labels = np.unique(splits.read_labels(source)).tolist()
  names = [splits.normal(source.class_names[label]) for label in labels]
  known = collections.defaultdict(list)
  for number, name in enumerate(classes):
    known[splits.normal(name)].append(number)
  found = collections.Counter(names)
  if odd := [n for n in names if found[n] > 1 or len(known.get(n, ())) != 1]:
    raise UserError(
      f'{source.name} has {transfer.describe_classes(odd)} that the network'
      ' lacks, or whose names stand for several; it has'
      f' {transfer.describe_classes(classes)} (imported weights: load them'
      ' again with --class_names FILE)'
    )
  own = [known[name][0] for name in names]
  kept = sorted(own)
  numbers = np.searchsorted(kept, own).tolist()
  loader.numbers = dict(zip(labels, numbers, strict=True))
  config = network.config.copy_and_resolve_references()
  config.model.num_classes, config.loss.class_weights = 0, ()
  params = jax.device_get(network.state.eval_params)
  head = {name: leaf[..., kept] for name, leaf in params['head'].items()}
  state = network.state.replace(
    apply_fn=build.make_model(config, len(kept)).apply,
    params=parallel.replicate({**params, 'head': head}, network.mesh),
    ema_params={},
  )
  _say(
    f'note: {source.name} has {len(kept):,} of the {len(classes):,} classes;'
    ' only those are predicted'
  )
  names = [classes[number] for number in kept]
  return dataclasses.replace(network, class_names=names, state=state), loader


def open_images(
  network: Network, images: Sequence, unreadable: str = 'stop'
) -> tuple[Network, loader_lib.Loader]:
  """Returns the network for `data.folder.ImageList`s, and a loader of one.

  Batches are smaller where there are fewer images; then numbers may differ in
  the last bits. For `unreadable` see `Loader`.
  """
  config = network.config.copy_and_resolve_references()
  config.global_batch_size = min(config.global_batch_size, len(images))
  loader = loader_lib.Loader(
    ImageList(images, ('',)),
    config.data.resize_size,
    channels=config.data.channels,
    unreadable=unreadable,
    skip_hint='take them out of the list',
    num_threads=config.data.num_threads,
  )
  return dataclasses.replace(network, config=config), loader


def _is_other_data(network):
  """Returns True if --data_path names data that was not trained on."""
  if not network.data_path or network.config.data.source not in _DIVIDED:
    return False
  try:
    training = build.make_source(network.config, 'train')
  except UserError:  # there is too little of it to divide
    return True
  return training.fingerprint != network.saved.data.fingerprint
