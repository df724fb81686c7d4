"""Reads the checkpoints of a run that is not, or no longer, being trained."""

import pathlib

import jax
import ml_collections

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.progress import Progress


def _is_run(workdir):
  return (pathlib.Path(workdir) / checkpoint.FOLDER).is_dir()


def require_run(workdir: str | pathlib.Path) -> None:
  """Raises UserError unless the folder is that of a run."""
  if not _is_run(workdir):
    raise UserError(
      f'{workdir} is not the folder of a run: no {checkpoint.FOLDER}/'
    )


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
  """Whether there is anything that `restore` could restore."""
  if not _is_run(workdir):
    return False
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    return bool(checkpoints.steps())
  finally:
    checkpoints.close()


def restore(
  workdir: str, which: str
) -> tuple[ml_collections.ConfigDict, list[str], state_lib.TrainState]:
  """A checkpoint of a run: (config, class names, state of numpy arrays).

  Args:
    workdir: the run's folder; it may be training at the same time.
    which: `final`, `newest`, `best` or the number of a step.

  Raises:
    UserError: if there is no run, or no such checkpoint.
  """
  require_run(workdir)
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    step = _find_step(checkpoints, which)
    saved = checkpoints.read_run(step)
    config = config_lib.from_dict(saved['config'])
    model = build.make_model(config, len(saved['data']['class_names']))
    state = jax.eval_shape(lambda: build.make_state(config, model))
    tree, _ = checkpoints.restore(step, state_lib.saved_tree(state))
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
