"""Opens the folder of a run for the commands that use a trained network."""

import dataclasses
import pathlib

import jax
import ml_collections

from alexnet_jax import assemble
from alexnet_jax import config as config_lib
from alexnet_jax.data import loader as loader_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training import checkpoint
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.progress import Progress


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
  mesh = parallel.make_mesh()
  config, class_names, state = restore(workdir, which, mesh)
  if data_path:
    config.data.path = data_path
  mean = assemble.stored_pixel_mean(config, workdir)
  steps = assemble.make_steps(config, mesh, mean, top=top)
  return SavedRun(
    config, class_names, state, mesh, steps, pathlib.Path(workdir)
  )


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
  """Whether there is anything that `load` could load."""
  path = pathlib.Path(workdir)
  if not (path / checkpoint.FOLDER).is_dir():
    return False
  checkpoints = checkpoint.Checkpoints(path, read_only=True)
  try:
    return bool(checkpoints.steps())
  finally:
    checkpoints.close()


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


def restore(workdir: str, which: str, mesh) -> tuple:
  """A checkpoint of a run: (config, class_names, state on the mesh).

  Raises:
    UserError: as `load` does.
  """
  path = pathlib.Path(workdir)
  if not (path / checkpoint.FOLDER).is_dir():
    raise UserError(
      f'{workdir} is not the folder of a run: no {checkpoint.FOLDER}/'
    )
  checkpoints = checkpoint.Checkpoints(path, read_only=True)
  try:
    step = _find_step(checkpoints, which)
    saved = checkpoints.read_run(step)
    config = config_lib.from_dict(saved['config'])
    model = assemble.make_model(config, len(saved['data']['class_names']))
    state = jax.eval_shape(lambda: assemble.make_state(config, model))
    template = parallel.replicated_template(state_lib.saved_tree(state), mesh)
    tree, _ = checkpoints.restore(step, template)
  except checkpoint.DamagedCheckpointError as error:
    raise UserError(
      f'a checkpoint in {workdir} is damaged ({error}); it has'
      f' {checkpoints.steps()}: choose another with --checkpoint, or start'
      ' training again, which sets the damaged one aside'
    ) from error
  finally:
    checkpoints.close()
  return config, saved['data']['class_names'], state.replace(**tree)


def _find_step(checkpoints, which):
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f'{checkpoints.folder} has no checkpoint yet')
  newest = checkpoints.read_run(steps[-1])
  progress = Progress.from_json(newest['progress'])
  config = config_lib.from_dict(newest['config'])
  named = {
    'newest': steps[-1],
    'final': progress.final_step(config, steps[-1]),
    'best': progress.best.step or steps[-1],
  }
  step = named.get(which, int(which) if which.isdigit() else None)
  if step not in steps:
    raise UserError(
      f'checkpoint {which!r} is not in {checkpoints.folder}, which has {steps}'
    )
  return step
