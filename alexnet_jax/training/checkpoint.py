"""Orbax checkpoints: what is saved, what makes one count, how a run is opened.

Checkpoint k holds step k, as two items: `state` (step, params, opt_state,
batch_stats, ema_params; once, whatever the number of devices) and `run`, the
JSON of a `SavedRun`.

Orbax writes a checkpoint under a temporary name and renames it when every file
is there, so a killed run leaves complete checkpoints and one temporary folder,
which the next start removes. A complete checkpoint can still be damaged later
(a full or broken disk, a careless copy): it counts only if it can be read and
its state has the digest that was written with it. One that does not count is
moved to `damaged/` beside the checkpoints, as soon as an older one was found
to take its place.

Of several processes, process 0 alone reads and writes, once, as whole arrays:
any number of processes and devices can go on from a checkpoint, and only
process 0 needs the run's folder. It sends what it read to the others.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import logging
import pathlib

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint_contents as contents
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.checkpoint_contents import DamagedCheckpointError
from alexnet_jax.training.distributed import ALONE
from alexnet_jax.training.distributed import ProcessGroup
from alexnet_jax.training.progress import Progress

FOLDER, DAMAGED_FOLDER = 'checkpoints', 'damaged'
_REPLACED_FOLDER = 'replaced'  # checkpoints that are being written anew
_TEMPORARY = '.orbax-checkpoint-tmp'  # in the name of a save under way
_CLOSING_ATTEMPTS = 5  # a save has three threads that can fail


@dataclasses.dataclass(frozen=True)
class SavedRun:
  """The part of a checkpoint that is not arrays.

  Attributes:
    config: the config that trained it.
    data: `build.data_record`; weights from elsewhere have class_names alone.
    progress: plateau, early stopping and metrics.
    iterator: the position of the training batches.
    devices: number of devices.
    processes: number of processes.
    num_microbatches: of a device's batch, see `step.accumulate`.
    imported: where weights from elsewhere come from; JSON.
    digest: `state.state_digest`; set by `Checkpoints.save`.
    versions: `checkpoint_contents.versions`; set by `Checkpoints.save`.
  """

  config: ml_collections.ConfigDict
  data: Mapping
  progress: Progress
  iterator: Mapping
  devices: int = 1
  processes: int = 1
  num_microbatches: int = 1
  imported: Mapping | None = None
  digest: str = ''
  versions: Mapping = dataclasses.field(default_factory=dict)

  @property
  def num_steps(self) -> int:
    """Returns how many steps the run was to have; 0 of imported weights."""
    if 'num_examples' not in self.data:
      return 0
    return config_lib.resolve_durations(
      self.config, self.data['num_examples']
    ).num_steps

  def is_done(self, step: int) -> bool:
    """Returns True if the run ended with this step, its newest."""
    return self.progress.stopping.stopped or step >= self.num_steps

  def to_json(self) -> dict:
    """Returns the fields as an object for JSON."""
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    fields['config'] = self.config.to_dict()
    fields['progress'] = self.progress.to_json()
    return fields

  @classmethod
  def from_json(cls, fields: Mapping) -> 'SavedRun':
    """Returns what `to_json` gave.

    Raises:
      ValueError: naming the fields that are missing or unknown.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    if wrong := sorted(names ^ fields.keys()):
      raise ValueError(f'missing or unknown: {", ".join(wrong)}')
    return cls(
      **{
        **fields,
        'config': config_lib.from_dict(fields['config']),
        'progress': Progress.from_json(fields['progress']),
      }
    )


class Checkpoints:
  """The checkpoints of one run.

  Every process of the run calls the same methods in the same order; an error
  of process 0 ends the others, see `distributed`.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    keep: int = 2,
    read_only: bool = False,
    processes: ProcessGroup = ALONE,
    check: Callable[[], None] = lambda: None,
  ):
    """Opens `workdir/checkpoints`, or creates it.

    Args:
      keep: number of newest checkpoints to keep, beside the steps that are
        named in `save`.
      read_only: changes nothing there, so that a run that is training at the
        same time is not disturbed.
    """
    self.folder = pathlib.Path(workdir).absolute() / FOLDER
    self._processes = processes
    self._check = check
    self._read_only = read_only
    self._replaced = self.folder.parent / _REPLACED_FOLDER
    self._keep = contents.KeepSteps(keep)
    self._manager = None  # in all processes but the first
    if not processes.is_first:
      return
    if not read_only:
      self.folder.mkdir(parents=True, exist_ok=True)
      # Orbax would do this in a thread, which may outlive a start that fails.
      for unfinished in self.folder.glob(f'*{_TEMPORARY}*'):
        contents.remove_folder(unfinished)
      contents.recover_replaced(self.folder, self._replaced)
    self._manager = contents.make_manager(self.folder, self._keep, read_only)

  def steps(self) -> list[int]:
    """Returns the steps of the checkpoints, oldest first; in process 0."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    tree: dict,
    run: SavedRun,
    *,
    keep_steps: Iterable[int] = (),
    replace: bool = False,
  ) -> None:
    """Starts to save checkpoint `tree['step']`.

    Args:
      tree: `state.saved_tree`. It is copied to the host before this returns, so
        the caller may donate it.
      run: what is saved with it; gets digest and versions.
      keep_steps: older checkpoints that must stay, such as the best.
      replace: whether a checkpoint of this step is written anew; otherwise it
        stays as it is.

    Raises:
      UserError: if this save or the one before it could not be written; the
        checkpoints before stay valid.
      NonFiniteLossError: if a parameter is infinite or not a number.
    """
    if self._manager is None:
      return
    step = int(tree['step'])
    exists = step in self._manager.all_steps()
    if exists and not replace:
      return
    self._keep.steps = set(keep_steps)
    # On a CPU these are views, and Orbax copies what it is given.
    host = jax.device_get(tree)
    contents.refuse_non_finite(host)
    run = dataclasses.replace(
      run, digest=state_lib.state_digest(host), versions=contents.versions()
    )
    try:
      if exists:
        self._wait()
        contents.set_aside(self.folder / str(step), self._replaced)
        self._manager.reload()
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(host),
          run=ocp.args.JsonSave(run.to_json()),
        ),
        force=True,  # the caller decides when to save
      )
    except Exception as error:  # Orbax raises whatever the file system gave
      raise self._save_error(error) from error

  def wait(self) -> None:
    """Waits until the save under way is complete, in all processes.

    Raises:
      UserError: as `save` does.
    """
    if self._manager is not None:
      self._wait()
    # A process that left before could end process 0 in the middle of its save.
    self._processes.barrier(lambda: None)

  def _wait(self):
    try:
      self._manager.wait_until_finished()
      contents.recover_replaced(self.folder, self._replaced)
    except Exception as error:
      raise self._save_error(error) from error

  def _save_error(self, error):
    if isinstance(error, UserError):
      return error
    self._end_threads()
    kept = self.steps()
    rest = (
      f'checkpoint {kept[-1]} in {self.folder} stays valid'
      if kept
      else f'there is no checkpoint in {self.folder} yet'
    )
    reason = str(error).split(' [tensorstore_spec')[0]
    return UserError(
      f'cannot save a checkpoint: {reason}. {rest}; make room or repair the'
      ' folder and start the same command again'
    )

  def restore_newest(self, template: dict) -> tuple[dict, SavedRun] | None:
    """Restores the newest checkpoint that counts; None if there is none at all.

    Args:
      template: `saved_tree` of arrays or ShapeDtypeStructs.

    Returns:
      (tree like `template` of numpy arrays, SavedRun).

    Raises:
      UserError: if the checkpoint is of another network, or none counts.
    """
    return self._in_all(lambda: self._restore_newest(template), template)

  def _restore_newest(self, template):
    damaged = {}
    for step in reversed(self.steps()):
      try:
        restored = self._restore(step, template)
      except DamagedCheckpointError as error:
        damaged[step] = error
        continue
      for bad, reason in damaged.items():
        self._set_aside(bad, reason)
      return restored
    if damaged:
      reasons = '; '.join(f'{s}: {e}' for s, e in damaged.items())
      raise UserError(
        f'no checkpoint in {self.folder} can be read ({reasons}). Put a copy in'
        ' their place, or start anew with another --workdir'
      )
    return None

  def restore(self, step: int, template: dict) -> tuple[dict, SavedRun]:
    """Restores one checkpoint; see `restore_newest`.

    Raises:
      DamagedCheckpointError: if it cannot be read or its digest differs.
      UserError: if it is of another network.
    """
    return self._in_all(lambda: self._restore(step, template), template)

  def _restore(self, step, template):
    run = self.read_run(step)
    try:
      saved = self._manager.item_metadata(step)['state'].tree
    except Exception as error:
      raise contents.as_damage('metadata', error) from error
    contents.refuse_misfit(saved, template, self.folder / str(step))
    # Orbax restores numpy arrays as what they are.
    arrays = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), template)
    try:
      tree = self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(arrays)),
      )['state']
    except Exception as error:
      raise contents.as_damage('state', error) from error
    if state_lib.state_digest(tree) != run.digest:
      raise DamagedCheckpointError('the state differs from its digest')
    return tree, run

  def _in_all(self, restore, template):
    """Calls a function in process 0; returns (tree, run), or None, in all."""
    restored = restore() if self._manager is not None else None
    if self._processes.is_alone:
      return restored
    tree, run = restored or (None, None)
    run = self._broadcast_run(run)
    if run is None:
      return None
    if tree is None:  # only shapes and dtypes count
      tree = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), template)
    return parallel.broadcast_arrays(tree), run

  def _broadcast_run(self, run):
    fields = self._processes.broadcast(run and run.to_json(), self._check)
    return fields and SavedRun.from_json(fields)

  def read_run(self, step: int) -> SavedRun:
    """Reads what one checkpoint says beside its arrays; in process 0.

    Raises:
      DamagedCheckpointError: if it cannot be read, or lacks a field.
    """
    try:
      fields = self._manager.restore(
        step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
      )['run']
      return SavedRun.from_json(fields)
    except Exception as error:
      raise contents.as_damage('run', error) from error

  def newest_run(self) -> SavedRun | None:
    """Reads the newest checkpoint's `SavedRun` that can be read."""
    run = None
    if self._manager is not None:
      # restore_newest names the damaged ones and sets them aside.
      _, run = self.read_newest() or (None, None)
    return self._broadcast_run(run)

  def read_newest(self) -> tuple[int, SavedRun] | None:
    """Returns step and `SavedRun` of the newest readable one; in process 0."""
    for step in reversed(self.steps()):
      try:
        return step, self.read_run(step)
      except DamagedCheckpointError:
        continue
    return None

  def _set_aside(self, step, reason):
    target = contents.set_aside(
      self.folder / str(step), self.folder.parent / DAMAGED_FOLDER
    )
    self._manager.reload()
    logging.getLogger(__name__).warning(
      'checkpoint %d is damaged (%s); it was moved to %s and the one before it'
      ' is used',
      step,
      reason,
      target,
    )

  def close(self) -> None:
    """Ends Orbax' threads; a save under way is completed.

    Raises nothing: what made the run end matters more than a save that fails.
    """
    if self._manager is None:
      return
    error = self._end_threads()
    if error is not None:
      logging.getLogger(__name__).warning('%s', self._save_error(error))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def _end_threads(self):
    """Returns the first error of the save under way once nothing writes.

    Orbax raises the error of one thread before it waits for the next, which
    could complete a checkpoint later; each error is raised once. The others
    follow from the first.
    """
    errors = []
    while len(errors) < _CLOSING_ATTEMPTS:
      try:
        self._manager.close()
        break
      except Exception as error:
        errors.append(error)
    if not self._read_only:
      contents.recover_replaced(self.folder, self._replaced)
      self._manager.reload()
    return errors[0] if errors else None


@dataclasses.dataclass(frozen=True)
class OpenRun:
  """A checkpoint of a run that is not, or no longer, being trained.

  Attributes:
    config: the config that trained it.
    class_names: names of its classes.
    state: the network, numpy arrays.
    saved: what the checkpoint says beside the arrays.
  """

  workdir: pathlib.Path
  config: ml_collections.ConfigDict
  class_names: list[str]
  state: state_lib.TrainState
  saved: SavedRun


def open_run(workdir: str | pathlib.Path, which: str = 'final') -> OpenRun:
  """Opens a checkpoint of a run; the run may be training at the same time.

  Args:
    which: `final`, `newest`, `best` or the number of a step.

  Raises:
    UserError: if there is no run, or no such checkpoint, or it is damaged.
  """
  with _open_read_only(workdir) as checkpoints:
    try:
      step = _find_step(checkpoints, which)
      saved = checkpoints.read_run(step)
      names = list(saved.data['class_names'])
      state = build.state_shapes(saved.config, len(names))
      tree, _ = checkpoints.restore(step, state_lib.saved_tree(state))
    except DamagedCheckpointError as error:
      raise UserError(
        f'a checkpoint in {workdir} is damaged ({error}); it has'
        f' {checkpoints.steps()}: choose another with --checkpoint, or start'
        ' training again, which sets the damaged one aside'
      ) from error
  state = state.replace(**tree)
  return OpenRun(pathlib.Path(workdir), saved.config, names, state, saved)


def read_newest(workdir: str | pathlib.Path) -> tuple[int, SavedRun]:
  """Reads step and `SavedRun` of the newest checkpoint that can be read.

  Raises:
    UserError: if there is no run, or no such checkpoint.
  """
  with _open_read_only(workdir) as checkpoints:
    found = checkpoints.read_newest()
  if found is None:
    raise UserError(f'{checkpoints.folder} has no checkpoint that can be read')
  return found


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
  """Returns True if `open_run` would find a checkpoint."""
  if not _is_run(workdir):
    return False
  with _open_read_only(workdir) as checkpoints:
    return bool(checkpoints.steps())


def _is_run(workdir):
  return (pathlib.Path(workdir) / FOLDER).is_dir()


def _open_read_only(workdir):
  if not _is_run(workdir):
    raise UserError(f'{workdir} is not the folder of a run: no {FOLDER}/')
  return Checkpoints(workdir, read_only=True)


def _find_step(checkpoints, which):
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f'{checkpoints.folder} has no checkpoint yet')
  newest = checkpoints.read_run(steps[-1])
  named = {
    'newest': steps[-1],
    'final': newest.progress.final_step(newest.config, steps[-1]),
    'best': newest.progress.best.step or steps[-1],
  }
  step = named.get(which, int(which) if which.isdigit() else None)
  if step not in steps:
    raise UserError(
      f'checkpoint {which!r} is not in {checkpoints.folder}, which has {steps}'
    )
  return step
