"""Orbax checkpoints: what is saved, what is read, what is kept.

Checkpoint k holds step k, as two items: `state` (step, params, opt_state,
batch_stats, once, whatever the number of devices) and `run`, a JSON object
with the config, the versions, the data record, the iterator's position, what
plateau and early stopping know, and the state's digest.

Orbax writes a checkpoint under a temporary name and renames it when every file
is there, so a killed run leaves complete checkpoints and one temporary folder,
which the next start removes. A complete checkpoint can still be damaged later
(a full or broken disk, a careless copy): it counts only if it can be read and
its state has the digest that was written with it. One that does not count is
moved to `damaged/` beside the checkpoints, as soon as an older one was found
to take its place.
"""

from collections.abc import Iterable
import ctypes
import logging
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import options as orbax_options
from orbax.checkpoint.checkpoint_managers import preservation_policy

from alexnet_jax.errors import UserError
from alexnet_jax.training import checkpoint_contents as contents
from alexnet_jax.training import checkpoint_folders as folders
from alexnet_jax.training.checkpoint_contents import DamagedCheckpointError
from alexnet_jax.training.state import state_digest

FOLDER, DAMAGED_FOLDER = 'checkpoints', 'damaged'
_REPLACED_FOLDER = 'replaced'  # what is just written anew
_TEMPORARY = '.orbax-checkpoint-tmp'  # in the name of a save under way
_CLOSING_ATTEMPTS = 5  # of a save three threads can fail
_malloc_trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # of glibc


def _give_memory_back() -> None:
  """Returns freed memory to the system where the C library keeps it.

  glibc keeps what the threads of a save freed: of a state of 0.5 GB 0.1 to
  0.3 GB with every save. Orbax calls it when all is written, before it gives
  the checkpoint its name: it must raise nothing.
  """
  if _malloc_trim is not None:
    _malloc_trim(0)


class _KeepSteps:
  """Orbax preservation policy: the newest `count`, and chosen steps."""

  def __init__(self, count: int):
    self.count = count
    self.steps = set()

  def should_preserve(self, checkpoints, *, context):
    newest = preservation_policy.LatestN(self.count).should_preserve(
      checkpoints, context=context
    )
    return [
      new or info.step in self.steps
      for new, info in zip(newest, checkpoints, strict=True)
    ]


class Checkpoints:
  """The checkpoints of one run."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    keep: int = 2,
    read_only: bool = False,
  ):
    """Opens `workdir/checkpoints`, or creates it.

    Args:
      workdir: the run's folder.
      keep: how many of the newest are kept; steps named in `save` are kept
        besides.
      read_only: changes nothing there, so that a run that is training at the
        same time is not disturbed.
    """
    self.folder = pathlib.Path(workdir).absolute() / FOLDER
    self._read_only = read_only
    self._replaced = self.folder.parent / _REPLACED_FOLDER
    self._keep = _KeepSteps(keep)
    if not read_only:
      self.folder.mkdir(parents=True, exist_ok=True)
      # Orbax would do this in a thread, which may outlive a start that fails.
      for unfinished in self.folder.glob(f'*{_TEMPORARY}*'):
        folders.remove(unfinished)
      folders.settle(self.folder, self._replaced)
    self._manager = ocp.CheckpointManager(
      self.folder,
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'run': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._keep,
        create=False,
        read_only=read_only,
        enable_async_checkpointing=not read_only,
        async_options=None
        if read_only
        else orbax_options.AsyncOptions(
          post_finalization_callback=_give_memory_back
        ),
        # Of several processes one opens checkpoints, and waits for no other.
        multiprocessing_options=orbax_options.MultiprocessingOptions(
          primary_host=jax.process_index(),
          active_processes={jax.process_index()},
          barrier_sync_key_prefix='checkpoints',
        ),
      ),
    )

  def steps(self) -> list[int]:
    """Steps of the checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    tree: dict,
    run: dict,
    *,
    keep_steps: Iterable[int] = (),
    replace: bool = False,
  ) -> None:
    """Starts to save checkpoint `tree['step']`.

    Args:
      tree: `state.saved_tree`. It is copied to the host before this returns, so
        the caller may donate it.
      run: what `run` holds besides digest and versions; JSON.
      keep_steps: older checkpoints that must stay, such as the best.
      replace: whether a checkpoint of this step is written anew; otherwise it
        stays as it is.

    Raises:
      UserError: if this save or the one before it could not be written; the
        checkpoints before stay valid.
      NonFiniteLossError: if a parameter is infinite or not a number.
    """
    step = int(tree['step'])
    exists = step in self._manager.all_steps()
    if exists and not replace:
      return
    self._keep.steps = set(keep_steps)
    # On a CPU these are views, and Orbax copies what it is given.
    host = jax.device_get(tree)
    contents.refuse_non_finite(host)
    run = {**run, 'digest': state_digest(host), 'versions': contents.versions()}
    try:
      if exists:
        self.wait()
        folders.set_aside(self.folder / str(step), self._replaced)
        self._manager.reload()
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(host), run=ocp.args.JsonSave(run)
        ),
        force=True,  # when to save is decided by the caller
      )
    except Exception as error:  # Orbax raises whatever the file system gave
      raise self._save_error(error) from error

  def wait(self) -> None:
    """Waits until the save under way is complete.

    Raises:
      UserError: as `save` does.
    """
    try:
      self._manager.wait_until_finished()
      folders.settle(self.folder, self._replaced)
    except Exception as error:
      raise self._save_error(error) from error

  def _save_error(self, error):
    self._end_threads()
    kept = self.steps()
    rest = (
      f'checkpoint {kept[-1]} in {self.folder} stays valid'
      if kept
      else f'there is no checkpoint in {self.folder} yet'
    )
    reason = str(error).split(' [tensorstore_spec')[0]
    return UserError(
      f'cannot save a checkpoint: {reason}. {rest}; make room or mend the'
      ' folder and start the same command again'
    )

  def restore_newest(self, template: dict) -> tuple[dict, dict] | None:
    """The newest checkpoint that counts, or None if there is none at all.

    Args:
      template: `saved_tree` of arrays or ShapeDtypeStructs.

    Returns:
      (tree like `template` of numpy arrays, run).

    Raises:
      UserError: if the checkpoint is of another network, or none counts.
    """
    damaged = {}
    for step in reversed(self.steps()):
      try:
        restored = self.restore(step, template)
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

  def restore(self, step: int, template: dict) -> tuple[dict, dict]:
    """One checkpoint: (tree like `template` of numpy arrays, run).

    Raises:
      DamagedCheckpointError: if it cannot be read or its digest differs.
      UserError: if it is of another network.
    """
    run = self.read_run(step)
    try:
      saved = self._manager.item_metadata(step)['state'].tree
    except Exception as error:
      raise contents.damage('metadata', error) from error
    contents.refuse_misfit(saved, template, self.folder / str(step))
    # Orbax restores numpy arrays as what they are.
    arrays = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), template)
    try:
      tree = self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(arrays)),
      )['state']
    except Exception as error:
      raise contents.damage('state', error) from error
    if state_digest(tree) != run['digest']:
      raise DamagedCheckpointError('the state differs from its digest')
    return tree, run

  def read_run(self, step: int) -> dict:
    """The JSON object of one checkpoint.

    Raises:
      DamagedCheckpointError: if it cannot be read.
    """
    try:
      run = self._manager.restore(
        step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
      )['run']
      run['digest'], run['config']
    except Exception as error:
      raise contents.damage('run', error) from error
    return run

  def newest_run(self) -> dict | None:
    """The JSON object of the newest checkpoint where it can be read."""
    for step in reversed(self.steps()):
      try:
        return self.read_run(step)
      except DamagedCheckpointError:
        continue  # restore_newest says so and sets it aside
    return None

  def _set_aside(self, step, reason):
    target = folders.set_aside(
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
    error = self._end_threads()
    if error is not None:
      logging.getLogger(__name__).warning('%s', self._save_error(error))

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
      folders.settle(self.folder, self._replaced)
      self._manager.reload()
    return errors[0] if errors else None
