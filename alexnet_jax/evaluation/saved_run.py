"""Opens the folder of a run for the commands that use a trained network."""

import dataclasses
import pathlib

import jax
import ml_collections

from alexnet_jax import assemble
from alexnet_jax import pixel_means
from alexnet_jax.data import loader as loader_lib
from alexnet_jax.errors import UserError
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
  steps: assemble.Steps
  workdir: pathlib.Path

  def to_devices(self, batch: dict) -> dict:
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)


def load(
  workdir: str, which: str = 'final', data_path: str = '', top: int = 5
) -> SavedRun:
  """Loads a checkpoint of a run, to use it.

  Args:
    workdir: the run's folder; it may be training at the same time.
    which: `final`, `newest`, `best` or the number of a step.
    data_path: where the data lies now; '': where it lay in training.
    top: number of classes that `steps.predict` gives.

  Raises:
    UserError: if there is no run, or no such checkpoint.
  """
  # Of this process: the first one of several draws the report for all.
  mesh = parallel.make_mesh(local=True)
  config, class_names, state = restored.restore(workdir, which)
  if data_path:
    config.data.path = data_path
  mean = pixel_means.stored_pixel_mean(config, workdir)
  steps = assemble.make_steps(config, mesh, mean, top=top)
  return SavedRun(
    config,
    class_names,
    parallel.replicate(state, mesh),
    mesh,
    steps,
    pathlib.Path(workdir),
  )


def make_eval_loader(run: SavedRun, split: str) -> loader_lib.Loader:
  """Reads the examples of a split of the run's data.

  Args:
    run: the run.
    split: see `assemble.make_loader`.

  Raises:
    UserError: if the data is not there, or has other classes than the run.
  """
  try:
    loader = assemble.make_loader(run.config, split)
  except UserError as error:
    raise UserError(f'{error} (for this command: --data_path DIR)') from error
  if (names := list(loader.source.class_names)) != run.class_names:
    raise UserError(
      f'{loader.source.name} has the classes {names}, but the network was'
      f' trained on {run.class_names}'
    )
  return loader
