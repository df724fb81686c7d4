"""Orbax checkpoints: what is saved, what makes one count, how a run is opened.

Checkpoint k holds step k, as two items: `state`, the arrays of
`state.saved_tree`, and `run`, the JSON of a `SavedRun`. It counts once Orbax
has renamed it, and while its state has the digest that was written with it.
Process 0 alone reads and writes, as whole arrays.
"""

from collections.abc import Iterable, Iterator
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import logging
import pathlib
import re
import shutil
import tempfile

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import options as orbax_options

from alexnet_jax import files, validation
from alexnet_jax.errors import UserError
from alexnet_jax.training import (
  build,
  distributed,
  parallel,
  state as state_lib,
)
from alexnet_jax.training.progress import SavedRun

FOLDER, DAMAGED_FOLDER = 'checkpoints', 'damaged'
# What commands write into the folder of a run.
_ENTRIES = (FOLDER, DAMAGED_FOLDER, 'events', 'loggers', 'profile', 'report')
_ENTRIES += ('config.json', 'metrics.jsonl', 'times.jsonl', 'pixel_mean.npz')
_RUN_FILE = 'run/metadata'  # of a checkpoint: Orbax' JSON of the `run`
_TEMPORARY = '.orbax-checkpoint-tmp'  # in the name of a save under way
_MOST_TRIES = 100  # to read a checkpoint, while the run removes one after one
# Orbax numbers the saves of a process: two at a time would disturb each other.
_thread = concurrent.futures.ThreadPoolExecutor(1)
_malloc_trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # of glibc
_log = logging.getLogger(__name__)


class DamagedCheckpointError(Exception):
  """A checkpoint that exists but cannot be used."""


def refuse_links(workdir: pathlib.Path) -> None:
  """Raises UserError if a run's folder has links to where it is written."""
  files.refuse_links(workdir, _ENTRIES)


class Checkpoints:
  """The checkpoints of a run in training; all processes call the same methods.

  An error of process 0 ends the others, see `distributed`.
  """

  def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2):
    """Keeps the `keep` newest ones, beside those named in `save`."""
    self.folder = pathlib.Path(workdir).absolute() / FOLDER
    self._keep = keep
    self._processes = distributed.current()
    self._saving = None  # the future of the save under way
    self._was_read_back = False
    if self._processes.is_first:
      self._processes.before_exit = self._wait_a_while
      for unfinished in self.folder.glob(f'*{_TEMPORARY}*'):
        shutil.rmtree(unfinished, ignore_errors=True)

  def save(
    self,
    tree: dict,
    run: SavedRun,
    *,
    keep_steps: Iterable[int] = (),
    replace: bool = False,
  ) -> None:
    """Starts to save checkpoint `tree['step']`, of `state.saved_tree`.

    The caller may donate the tree after this. Older ones in `keep_steps` stay.
    Of one of this step the arrays are the same, and stay; the run is written
    anew if to `replace` it. Raises UserError if the save before failed,
    NonFiniteLossError if a parameter is not finite.
    """
    if not self._processes.is_first:
      return
    self._wait()
    step = int(tree['step'])
    self.folder.mkdir(parents=True, exist_ok=True)
    path = self.folder / str(step)
    fields, kept = run.to_json(), {step, *keep_steps}
    if path.exists():
      if replace:
        self._saving = _thread.submit(self._replace_run, path, fields, kept)
      return
    # Copies: on a CPU these are views of what the next step overwrites.
    host = jax.tree.map(np.array, jax.device_get(tree))
    state_lib.refuse_non_finite(host)
    self._saving = _thread.submit(self._write, path, host, fields, kept)

  def _replace_run(self, path, fields, keep_steps):
    fields['digest'] = _read_run(path).digest
    files.write_json(path / _RUN_FILE, fields)
    self._remove_older(keep_steps)

  def _write(self, path, host, fields, keep_steps):
    fields['digest'] = state_lib.state_digest(host)
    own = _own_process()
    handler = ocp.CompositeCheckpointHandler(
      state=ocp.StandardCheckpointHandler(multiprocessing_options=own),
      run=ocp.JsonCheckpointHandler(multiprocessing_options=own),
      composite_options=ocp.CompositeOptions(own),
    )
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(host), run=ocp.args.JsonSave(fields)
    )
    with _plain_name(self.folder) as folder:
      checkpointer = ocp.Checkpointer(handler, multiprocessing_options=own)
      checkpointer.save(folder / path.name, args=items)
    if not self._was_read_back:  # a run must not train into what no one opens
      try:
        _read(path, host)
      except DamagedCheckpointError as error:
        shutil.rmtree(path)
        raise UserError(f'it cannot be read back ({error})') from error
      self._was_read_back = True
    files.sync_folder(path)  # before older ones go
    self._remove_older(keep_steps)
    # glibc keeps what the threads of a save freed: of a state of 0.5 GB 0.1 to
    # 0.3 GB with every save.
    if _malloc_trim is not None:
      _malloc_trim(0)

  def _remove_older(self, keep_steps):
    for step in {*_steps(self.folder)[: -self._keep]} - keep_steps:
      path = self.folder / str(step)
      try:
        # A reader finds it gone, and not damaged.
        path = path.rename(f'{path}{_TEMPORARY}.removed')
        shutil.rmtree(path, ignore_errors=True)  # or by the next start
      except OSError as error:
        _log.warning('%s stays: %s', path, error)

  def wait(self) -> None:
    """Waits until the save under way is complete, in all; raises as `save`."""
    self._wait()
    # A process that left before could end process 0 in the middle of its save.
    self._processes.barrier(patient=True)

  def _wait(self):
    if self._saving is None:
      return
    try:
      self._saving.result()
    except Exception as error:  # Orbax raises whatever the file system gave
      reason = str(error).split(' [tensorstore_spec')[0]
      raise UserError(
        f'cannot save a checkpoint: {reason}. Valid checkpoints in'
        f' {self.folder}: {_steps(self.folder) or "none yet"}; make room or'
        ' repair the folder and start the same command again'
      ) from error
    finally:
      self._saving = None

  def _wait_a_while(self, seconds):  # from another thread
    if saving := self._saving:
      concurrent.futures.wait([saving], seconds)

  def close(self) -> None:
    """Completes a save under way."""
    try:
      self._wait()
    except UserError as failure:  # what made the run end matters more
      _log.warning('%s', failure)

  def restore_newest(self, template: dict) -> tuple[dict, SavedRun] | None:
    """Restores the newest checkpoint that counts; None if there is none at all.

    The tree has numpy arrays like those of `template`, a `saved_tree`. Raises
    UserError if the checkpoint is of another network, or none counts.
    """

    def read():
      damaged = {}
      for step in reversed(_steps(self.folder)):
        try:
          found = _read(self.folder / str(step), template)
        except DamagedCheckpointError as error:
          damaged[step] = error
          continue
        for bad, reason in damaged.items():
          self._set_aside(bad, reason)
        return found
      if damaged:
        reasons = '; '.join(f'{s}: {e}' for s, e in damaged.items())
        raise UserError(
          f'no checkpoint in {self.folder} can be read ({reasons}). Put a copy'
          ' in their place, or start anew with another --workdir'
        )
      return None, None

    return self._in_all(read, template)

  def restore(self, step: int, template: dict) -> tuple[dict, SavedRun]:
    """Restores one checkpoint; see `restore_newest`.

    Raises DamagedCheckpointError if it cannot be read or its digest differs.
    """
    path = self.folder / str(step)
    return self._in_all(lambda: _read(path, template), template)

  def _in_all(self, read, template):
    """Calls a function in process 0; returns (tree, run), or None, in all."""
    tree, run = read() if self._processes.is_first else (None, None)
    if (run := self._broadcast(run)) is None:
      return None
    if tree is None:  # only shapes and dtypes count
      tree = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), template)
    return parallel.broadcast_arrays(tree), run

  def _broadcast(self, run):
    fields = self._processes.broadcast(run and run.to_json())
    return fields and SavedRun.from_json(fields)

  def newest_run(self) -> SavedRun | None:
    """Reads the newest `SavedRun` that can be read, in all processes."""
    run = None
    if self._processes.is_first:
      with contextlib.suppress(UserError):  # restore_newest says what is wrong
        _, run = read_newest(self.folder.parent)
    return self._broadcast(run)

  def _set_aside(self, step, reason):
    target = self.folder.parent / DAMAGED_FOLDER / str(step)
    target.parent.mkdir(exist_ok=True)
    while target.exists():
      target = target.with_name(target.name + '_')
    (self.folder / str(step)).rename(target)
    text = 'it was moved to %s and the one before it is used'
    _log.warning(f'checkpoint %d is damaged (%s); {text}', step, reason, target)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *error) -> None:
    self.close()


def _steps(folder):
  """Returns the steps of the checkpoints in a folder, oldest first."""
  names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
  return sorted(int(n) for n in names if re.fullmatch(r'0|[1-9]\d*', n))


def _own_process():  # Orbax waits for no other one
  return orbax_options.MultiprocessingOptions(
    primary_host=jax.process_index(),
    active_processes={jax.process_index()},
    barrier_sync_key_prefix='checkpoints',
  )


@contextlib.contextmanager
def _plain_name(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a UTF-8 name of the folder without patterns and backslashes."""
  if not re.search(r'[][*?\\\ud800-\udfff]', str(folder)):
    yield folder
    return
  with tempfile.TemporaryDirectory() as parent:
    link = pathlib.Path(parent, 'checkpoints')
    link.symlink_to(folder)
    yield link


def _read(path, template) -> tuple[dict, SavedRun]:
  """Reads a checkpoint; see `Checkpoints.restore`."""
  run, own = _read_run(path), _own_process()
  handler = ocp.StandardCheckpointHandler(multiprocessing_options=own)
  with _plain_name(path.parent) as folder:
    state = folder / path.name / 'state'
    with _damage_in('metadata'):
      saved = handler.metadata(state).tree
    if lines := state_lib.misfits(saved, template):
      raise UserError(
        f'{path} is of another network:\n{lines}Use its config or another'
        ' --workdir'
      )
    # Orbax restores numpy arrays as what they are.
    arrays = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), template)
    with _damage_in('state'):
      tree = handler.restore(state, args=ocp.args.StandardRestore(arrays))
  if state_lib.state_digest(tree) != run.digest:
    raise DamagedCheckpointError('the state differs from its digest')
  return tree, run


def _read_run(path) -> SavedRun:
  with _damage_in('run'):
    fields = files.read_json(path / _RUN_FILE, dict)
    run = SavedRun.from_json(fields)
  try:
    validation.check_values(run.config)
  except UserError as error:  # of another version perhaps, and no damage
    raise UserError(f'{path} cannot be read here: {error}') from error
  return run


@contextlib.contextmanager
def _damage_in(part):
  """Raises errors as damage, unless a later read may succeed."""
  try:
    yield
  except Exception as error:
    if files.is_transient(error):
      raise
    raise DamagedCheckpointError(f'{part}: {error}') from error


@dataclasses.dataclass(frozen=True)
class OpenRun:
  """A checkpoint of a run that is not being trained here: numpy arrays."""

  workdir: pathlib.Path
  config: ml_collections.ConfigDict
  class_names: list[str]
  state: state_lib.TrainState
  saved: SavedRun


def open_run(workdir: str | pathlib.Path, which: str = 'final') -> OpenRun:
  """Opens a checkpoint of a run; the run may be training at the same time.

  It is the `final`, `newest` or `best` one, or that of a step. Raises UserError
  if there is no run or checkpoint, or it is damaged.
  """
  folder = _folder_of(workdir)
  for _ in range(_MOST_TRIES):
    path = _find(folder, which)
    try:
      saved = _read_run(path)
      names = saved.data.class_names
      state = build.state_shapes(saved.config, len(names))
      tree, saved = _read(path, state_lib.saved_tree(state))
      state = state.replace(**tree)
      return OpenRun(pathlib.Path(workdir), saved.config, names, state, saved)
    except Exception as error:
      if not path.exists():
        continue  # the run removed it just now
      if not isinstance(error, DamagedCheckpointError):
        raise
      others = [step for step in _steps(folder) if str(step) != path.name]
      advice = 'put a copy in its place, or train anew with another --workdir'
      if others:
        advice = f'choose another with --checkpoint, of {others}, or start'
        advice += ' training again, which sets the damaged one aside'
      raise UserError(
        f'checkpoint {path} is damaged ({error}); {advice}'
      ) from error
  raise UserError(
    f'the run in {workdir} removed {_MOST_TRIES} checkpoints while they were'
    ' read; keep more of them with --config.checkpoint.keep, or save less often'
  )


def read_newest(workdir: str | pathlib.Path) -> tuple[int, SavedRun]:
  """Reads step and `SavedRun` of the newest checkpoint that can be read."""
  folder, steps, reason = _folder_of(workdir), None, 'there is none'
  while _steps(folder) != steps:  # or the run removed them just now
    steps = _steps(folder)
    for step in reversed(steps):
      try:
        return step, _read_run(folder / str(step))
      except DamagedCheckpointError as error:
        reason = f'{step}: {error}'
  raise UserError(f'{folder} has no checkpoint that can be read ({reason})')


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
  """Returns True if `open_run` would find a checkpoint."""
  return bool(_steps(pathlib.Path(workdir) / FOLDER))


def _folder_of(workdir):
  folder = pathlib.Path(workdir).absolute() / FOLDER
  if not folder.is_dir():
    raise UserError(f'{workdir} is not the folder of a run: no {FOLDER}/')
  return folder


def _find(folder, which):
  """Returns the path of a checkpoint; see `open_run`."""
  steps, newest = _steps(folder), None
  step = int(which) if re.fullmatch('[0-9]+', which) else None
  if step is None and steps:
    newest, saved = read_newest(folder.parent)
    if newest < steps[-1] and (folder / str(steps[-1])).exists():
      text = 'newer checkpoints than %d in %s cannot be read'
      _log.warning(text, newest, folder)
    step = {
      'newest': newest,
      'final': saved.progress.final_step(saved.config, newest),
      'best': saved.progress.best.step or newest,
    }.get(which)
  steps = _steps(folder)  # a run in training may have another newest one by now
  if step is None or step not in (*steps, newest):
    raise UserError(
      f'checkpoint {which!r} is not in {folder}, which has'
      f' {steps or "none yet"}'
    )
  files.refuse_link(folder / str(step))
  return folder / str(step)
