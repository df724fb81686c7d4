"""The checkpoints of a run of any number of processes.

Process 0 reads and writes them, once, as whole arrays: so any number of
processes and devices can go on from them, and only process 0 needs the run's
folder. What it read it tells the others.
"""

from collections.abc import Callable
import pathlib

import jax
import numpy as np

from alexnet_jax.training import parallel
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.checkpoint import FOLDER
from alexnet_jax.training.processes import Processes


class SharedCheckpoints:
  """What `checkpoint.Checkpoints` does, for all processes of a run.

  Every process calls the same methods in the same order. What process 0 raises
  ends the others, too; see `processes`.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    keep: int,
    processes: Processes,
    check: Callable[[], None],
  ):
    """Opens the checkpoints, in process 0.

    Args:
      workdir: the run's folder.
      keep: see `Checkpoints`.
      processes: of the run.
      check: called while this process waits for another; may raise.
    """
    self.folder = workdir.absolute() / FOLDER
    self._processes = processes
    self._check = check
    self._own = Checkpoints(workdir, keep=keep) if processes.is_first else None

  def newest_run(self) -> dict | None:
    """As `Checkpoints.newest_run`."""
    run = self._own.newest_run() if self._own else None
    return self._processes.tell(run, self._check)

  def restore_newest(self, template: dict) -> tuple[dict, dict] | None:
    """As `Checkpoints.restore_newest`."""
    restored = self._own.restore_newest(template) if self._own else None
    return self._told(restored, template)

  def restore(self, step: int, template: dict) -> tuple[dict, dict]:
    """As `Checkpoints.restore`."""
    restored = self._own.restore(step, template) if self._own else None
    return self._told(restored, template)

  def _told(self, restored, template):
    tree, run = restored or (None, None)
    run = self._processes.tell(run, self._check)
    if run is None:
      return None
    if tree is None:  # only shapes and dtypes count
      tree = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), template)
    return parallel.from_first(tree), run

  def save(self, *arguments, **options) -> None:
    """As `Checkpoints.save`; it is done by process 0 alone."""
    if self._own:
      self._own.save(*arguments, **options)

  def wait(self) -> None:
    """As `Checkpoints.wait`, in all processes."""
    if self._own:
      self._own.wait()
    # Whoever left before could end process 0 in the middle of its save.
    self._processes.meet(lambda: None)

  def close(self) -> None:
    """As `Checkpoints.close`."""
    if self._own:
      self._own.close()
