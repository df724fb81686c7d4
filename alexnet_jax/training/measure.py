"""Measures a network on a whole split, and loads one that was trained."""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import pathlib
import sys

import jax
import ml_collections
import numpy as np
import scipy.sparse

from alexnet_jax import validation
from alexnet_jax.data import loader as loader_lib
from alexnet_jax.data.folder import FolderSource
from alexnet_jax.errors import Interrupted
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import metrics
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from alexnet_jax.training import transfer

_DIVIDED = ('folder', 'tar', 'parquet')  # where they have no validation split


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The predictions for every example of a split, in the split's order.

  Attributes:
    labels: true classes, int32 [n].
    counts: bool [n]; False for images that could not be decoded.
    classes: int32 [n, k], the best first.
    probabilities: float32 [n, k].
    loss: float32 [n], in nats.
  """

  labels: np.ndarray
  counts: np.ndarray
  classes: np.ndarray
  probabilities: np.ndarray
  loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
  """The measures of a network on a split.

  Attributes:
    values: {eval/loss (nats), eval/top1, eval/top5 (shares), eval/macro_f1,
      ...}: sums in float64, divided once at the end; see also
      `metrics.averaged_measures`.
    confusion: counts of (true class, predicted class), int64 [classes,
      classes], sparse.
    predictions: for every example.
  """

  values: dict[str, float]
  confusion: scipy.sparse.csr_array
  predictions: Predictions


def evaluate(
  eval_step: Callable,
  state,
  batches: Iterable[dict],
  to_devices: Callable[[dict], dict],
  progress: Callable[[int], None] = lambda done: None,
  num_examples: int | None = None,
) -> Measured:
  """Measures over exactly the examples whose mask is set.

  Args:
    eval_step: mapped over the devices, see `training.step.eval_step`.
    batches: host batches of the split, see `data.pipeline.make_eval_iter`.
    to_devices: starts the transfer of a batch.
    progress: called with the number of batches dispatched.
    num_examples: of the split; None: predictions have the padding of the last
      batch, which does not count.

  Raises:
    UserError: if no example counts.
    Interrupted: after a batch whose stop flag was set, see `resume`.
  """
  pending, total, parts = None, {}, []

  def fetch(sums):  # waits for the results of one batch
    nonlocal total
    if float(sums.pop('stop', 0)):
      raise Interrupted('a signal to one of the processes')
    parts.append(jax.device_get(sums.pop('examples')))
    num_classes = int(sums.pop('num_classes'))
    total = metrics.add_sums(total, sums)
    return num_classes

  for number, batch in enumerate(batches, 1):
    sums = eval_step(state, to_devices(batch))
    # One batch late: the next is under way before the host waits.
    if pending is not None:
      fetch(pending)
    pending = sums
    progress(number)
  num_classes = fetch(pending) if pending else 0
  if not total.get('count'):
    raise UserError('there is no image to evaluate, or none can be decoded')
  predictions = Predictions(
    **{
      name: np.concatenate([part[name] for part in parts])[:num_examples]
      for name in parts[0]
    }
  )
  counts = predictions.counts
  confusion = metrics.confusion_matrix(
    predictions.labels[counts], predictions.classes[counts, 0], num_classes
  )
  averages = metrics.averaged_measures(confusion)
  values = metrics.ratios(total, 'eval') | {
    f'eval/{name}': value for name, value in averages.items()
  }
  return Measured(values, confusion, predictions)


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained network on the devices of this process, and its config.

  `data_path` is '' where its data lies as in training.
  """

  workdir: pathlib.Path
  config: ml_collections.ConfigDict
  class_names: list[str]
  state: state_lib.TrainState
  saved: checkpoint.SavedRun
  data_path: str
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
) -> Network:
  """Loads a checkpoint of a run, to use it.

  Args:
    workdir: the run's folder; it may be training at the same time.
    which: `final`, `newest`, `best` or the number of a step.
    data_path: where the data is now; '': where it was in training.
    top: number of classes that are predicted for an image.
    crops: 1 or 10, of each image; see `build.make_steps`.

  Raises:
    UserError: if there is no run, no such checkpoint, or no use for a path.
  """
  # Of this process: process 0 alone draws the report of a run of several.
  mesh = parallel.make_mesh(local=True)
  run = checkpoint.open_run(workdir, which)
  if data_path == run.config.data.path:
    data_path = ''
  if data_path:
    run.config.data.path = data_path
    validation.validate(run.config, ['data.path'])
  mean = build.stored_mean(run.config, workdir)
  return Network(
    workdir=run.workdir,
    config=run.config,
    class_names=run.class_names,
    state=parallel.replicate(run.state, mesh),
    saved=run.saved,
    data_path=data_path,
    mesh=mesh,
    steps=build.make_steps(run.config, mesh, mean, top=top, crops=crops),
  )


def warn_of_crops(network: Network, crops: int) -> None:
  """Prints a warning where ten crops are of no use for this network."""
  data, problems = network.config.data, []
  if crops > 1 and not data.random_flip:
    problems.append(
      'half of the ten crops are mirrored, and this network was not trained on'
      ' mirrored images (config.data.random_flip is False)'
    )
  if crops > 1 and data.crop_size == data.resize_size:
    problems.append(
      'the ten crops are two: config.data.crop_size and resize_size are both'
      f' {data.crop_size}, so that all positions are the same'
    )
  for problem in problems:
    print(f'warning: {network.workdir}: {problem}', file=sys.stderr)


def make_eval_loader(network: Network, split: str) -> loader_lib.Loader:
  """Returns a loader of a split of the network's data.

  The data of the training is divided as there, wherever it lies now. Other data
  is not: it is measured whole, if it has no validation split of its own.

  Args:
    split: see `build.make_loader`.

  Raises:
    UserError: if the data is not there, or has other classes than the network.
  """
  workdir, data = network.workdir, network.config.data
  classes = network.class_names
  if data.path == transfer.NO_DATA:
    raise UserError(
      f'{workdir} holds imported weights, and no data was named: give'
      f' --data_path DIR (config.data.source is {data.source}), or'
      ' load them again with --data_source'
    )
  config = network.config
  if is_other := _is_other_data(network):
    config = config.copy_and_resolve_references()
    config.data.val_fraction, config.data.folds = 0.0, 0
    split = 'all' if split == 'validation' else split
  try:
    loader = build.make_loader(config, split)
  except UserError as error:
    if str(error).startswith('split'):
      raise
    raise UserError(f'{error} (for this command: --data_path DIR)') from error
  names, source = list(loader.source.class_names), loader.source
  some = isinstance(source, FolderSource) and set(names) < set(classes)
  if is_other and some:  # a test folder may lack a class
    loader.source = source = _relabelled(source, classes)
    names = classes
  if not transfer.same_classes(names, network.class_names):
    raise UserError(
      f'{source.name} has {transfer.describe_classes(names)}, but the network'
      f' has {transfer.describe_classes(network.class_names)}; names and order'
      ' must be the same (imported weights: load them again with --class_names'
      ' FILE)'
    )
  if names != network.class_names:
    print(
      f'note: the classes of {workdir} have no names; those of {source.name}'
      ' are used, in its order',
      file=sys.stderr,
    )
  if is_other:
    print(
      f'note: {source.name} is not the data of the training; all'
      f' {source.num_examples:,} examples in it are measured',
      file=sys.stderr,
    )
  return loader


def _relabelled(source, class_names):
  """Returns a folder of some of the classes with the labels of the network."""
  numbers = np.array([class_names.index(n) for n in source.class_names])
  labels = np.int32(numbers[source.labels])
  return dataclasses.replace(source, labels=labels, class_names=class_names)


def _is_other_data(network):
  """Returns True if --data_path names data that was not trained on."""
  if not network.data_path or network.config.data.source not in _DIVIDED:
    return False
  try:
    training = build.make_source(network.config, 'train')
  except UserError:  # there is too little of it to divide
    return True
  return training.fingerprint != network.saved.data.get('fingerprint')
