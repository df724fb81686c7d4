"""Opens the folder of a run for the commands that use a trained network."""

import dataclasses
import pathlib
import sys

import jax
import ml_collections

from alexnet_jax import placeholders
from alexnet_jax.data import loader as loader_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import parallel
from alexnet_jax.training import restored
from alexnet_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class SavedRun:
  """A trained network with all that is needed to use it."""

  config: ml_collections.ConfigDict
  class_names: list[str]
  state: state_lib.TrainState
  mesh: jax.sharding.Mesh
  steps: build.Steps
  workdir: pathlib.Path

  def to_devices(self, batch: dict) -> dict:
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)


def load(
  workdir: str,
  which: str = 'final',
  data_path: str = '',
  top: int = 5,
  crops: int = 1,
) -> SavedRun:
  """Loads a checkpoint of a run, to use it.

  Args:
    workdir: the run's folder; it may be training at the same time.
    which: `final`, `newest`, `best` or the number of a step.
    data_path: where the data lies now; '': where it lay in training.
    top: number of classes that `steps.predict` gives.
    crops: 1 or 10, of each image; see `build.make_steps`.

  Raises:
    UserError: if there is no run, or no such checkpoint.
  """
  # Of this process alone: the first of several draws the report for all.
  mesh = parallel.make_mesh(local=True)
  config, class_names, state = restored.restore(workdir, which)
  if data_path:
    config.data.path = data_path
  mean = build.stored_mean(config, workdir)
  steps = build.make_steps(config, mesh, mean, top=top, crops=crops)
  return SavedRun(
    config,
    class_names,
    parallel.replicate(state, mesh),
    mesh,
    steps,
    pathlib.Path(workdir),
  )


def read_newest(workdir: str) -> tuple[int, dict]:
  """Reads (step, JSON object) of the newest checkpoint that can be read.

  Raises:
    UserError: if there is no run, or no such checkpoint.
  """
  restored.require_run(workdir)
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    for step in reversed(checkpoints.steps()):
      try:
        return step, checkpoints.read_run(step)
      except checkpoint.DamagedCheckpointError:
        continue
  finally:
    checkpoints.close()
  raise UserError(f'{checkpoints.folder} has no checkpoint that can be read')


def warn_of_crops(run: SavedRun, crops: int) -> None:
  """Warns on standard error of ten crops that are no good for this run."""
  data = run.config.data
  problems = {
    'half of the ten crops are mirrored, and this network was not trained on'
    ' mirrored images (config.data.random_flip is False)': not data.random_flip,
    'the ten crops are two: config.data.crop_size and resize_size are both'
    f' {data.crop_size}, so that all corners are the same': (
      data.crop_size == data.resize_size
    ),
  }
  for problem, there in problems.items():
    if crops > 1 and there:
      print(f'warning: {run.workdir}: {problem}', file=sys.stderr)


def make_eval_loader(run: SavedRun, split: str) -> loader_lib.Loader:
  """Reads the examples of a split of the run's data.

  Args:
    run: the run.
    split: see `build.make_loader`.

  Raises:
    UserError: if the data is not there, or has other classes than the run.
  """
  if run.config.data.path == placeholders.NO_DATA:
    raise UserError(
      f'{run.workdir} holds weights of elsewhere, and no data was named: give'
      f' --data_path DIR (config.data.source is {run.config.data.source}), or'
      ' load them again with --data_source'
    )
  try:
    loader = build.make_loader(run.config, split)
  except UserError as error:
    hint = '' if str(error).startswith('split') else '--data_path DIR'
    message = f'{error} (for this command: {hint})' if hint else str(error)
    raise UserError(message) from error
  _check_classes(run, loader.source)
  return loader


def _check_classes(run, source):
  names = list(source.class_names)
  if not placeholders.agree(names, run.class_names):
    raise UserError(
      f'{source.name} has {placeholders.shown(names)}, but the network has'
      f' {placeholders.shown(run.class_names)}; names and order must be the'
      ' same (weights of elsewhere: load them again with --class_names FILE)'
    )
  if names != run.class_names:
    print(
      f'note: the classes of {run.workdir} have no names; taken are those of'
      f' {source.name}, in its order',
      file=sys.stderr,
    )
