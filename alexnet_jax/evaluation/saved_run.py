"""Opens the folder of a run for the commands that use a trained network."""

import dataclasses
import pathlib

import jax
import ml_collections

from alexnet_jax import assemble
from alexnet_jax import config as config_lib
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

  def to_devices(self, batch: dict) -> dict:
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)


def load(workdir: str, which: str, data_path: str = '') -> SavedRun:
  """Loads a checkpoint of a run.

  Args:
    workdir: the run's folder; it may be training at the same time.
    which: `final`, `newest`, `best` or the number of a step.
    data_path: where the data lies now; '': where it lay in training.

  Raises:
    UserError: if there is no run, or no such checkpoint.
  """
  path = pathlib.Path(workdir)
  if not (path / checkpoint.FOLDER).is_dir():
    raise UserError(
      f'{workdir} is not the folder of a run: no {checkpoint.FOLDER}/'
    )
  mesh = parallel.make_mesh()
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
  if data_path:
    config.data.path = data_path
  steps = assemble.make_steps(
    config, mesh, assemble.stored_pixel_mean(config, path)
  )
  class_names = saved['data']['class_names']
  return SavedRun(config, class_names, state.replace(**tree), mesh, steps)


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
