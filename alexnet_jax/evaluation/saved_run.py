"""Opens the folder of a run for the commands that use a trained network."""

import dataclasses
import pathlib

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from alexnet_jax import assemble
from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training import checkpoint
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class SavedRun:
  """A trained network with all that is needed to use it."""

  config: object
  state: state_lib.TrainState
  mesh: jax.sharding.Mesh
  steps: assemble.Steps

  def to_devices(self, batch: dict) -> dict:
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)


def state_template(state, mesh) -> dict:
  """Shapes, dtypes and shardings of what a checkpoint of `state` holds."""
  sharding = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state_lib.saved_tree(state),
  )


def final_step(progress: dict, config, newest: int) -> int:
  """The step a run ended with: the best, if it restores that, or the newest."""
  stopping = config.early_stopping
  if stopping.enabled and stopping.restore_best:
    return progress['stopping']['best_step'] or newest
  return newest


def load(workdir: str, which: str) -> SavedRun:
  """Loads a checkpoint of a run.

  Args:
    workdir: the run's folder.
    which: `final`, `newest`, `best` or the number of a step.

  Raises:
    UserError: if there is no run, or no such checkpoint.
  """
  path = pathlib.Path(workdir)
  file = path / config_lib.CONFIG_FILE
  if not file.is_file():
    raise UserError(f'{workdir} is not the folder of a run: no {file.name}')
  config = config_lib.from_json(file.read_text())
  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  checkpoints = checkpoint.Checkpoints(path, keep=config.checkpoint.keep)
  try:
    step = _find_step(checkpoints, config, which)
    num_classes = checkpoints.read_run(step)['data']['num_classes']
    model = assemble.make_model(config, num_classes)
    state = jax.eval_shape(lambda: assemble.make_state(config, model))
    tree, _ = checkpoints.restore(step, state_template(state, mesh))
  except checkpoint.DamagedCheckpointError as error:
    raise UserError(f'a checkpoint in {workdir} is damaged: {error}') from error
  finally:
    checkpoints.close()
  mean = assemble.stored_pixel_mean(config, path)
  steps = assemble.make_steps(config, mesh, mean)
  return SavedRun(config, state.replace(**tree), mesh, steps)


def _find_step(checkpoints, config, which):
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f'{checkpoints.folder} has no checkpoint yet')
  progress = checkpoints.read_run(steps[-1])['progress']
  named = {
    'newest': steps[-1],
    'final': final_step(progress, config, steps[-1]),
    'best': progress['best']['best_step'] or steps[-1],
  }
  step = named.get(which, int(which) if which.isdigit() else None)
  if step not in steps:
    raise UserError(
      f'checkpoint {which!r} is not in {checkpoints.folder}, which has {steps}'
    )
  return step
