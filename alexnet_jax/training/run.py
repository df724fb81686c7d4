"""The parts of a run: those that stay, and those that change."""

import dataclasses
import pathlib

import jax
import ml_collections
import numpy as np

from alexnet_jax.config import Durations
from alexnet_jax.data import loader
from alexnet_jax.errors import Interrupted
from alexnet_jax.training import build
from alexnet_jax.training import guards
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.console import Console
from alexnet_jax.training.console import Speed
from alexnet_jax.training.processes import Processes
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.progress import TrainLog
from alexnet_jax.training.shared_checkpoints import SharedCheckpoints
from alexnet_jax.training.writers import MetricWriter
from alexnet_jax.training.writers import NoWriter


@dataclasses.dataclass
class Run:
  """The parts of a run that stay the same while it trains."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  stop: guards.StopSignal
  console: Console
  mesh: jax.sharding.Mesh
  train_loader: loader.Loader
  eval_loader: loader.Loader
  num_classes: int
  durations: Durations
  steps: build.Steps
  frozen_steps: build.Steps  # until `durations.unfreeze_step`
  color: np.ndarray | None  # see `pixel_statistics.Statistics`
  data_record: dict
  processes: Processes

  def to_devices(self, batch: dict) -> dict:
    """See `parallel.batch_to_devices`; tells the others of a signal, too."""
    if not self.processes.is_alone:
      received = self.stop.received is not None
      batch = {**batch, 'stop': np.full(batch['label'].shape, received)}
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)

  def check_stop(self, agreed: bool = False) -> None:
    """Raises Interrupted if a signal came to any process.

    Of several processes none may stop by itself. A signal goes with the batch
    to the devices, and comes back to all of them with the sums of that step.

    Args:
      agreed: whether it did.
    """
    if self.processes.is_alone:
      self.stop.check()
    elif agreed:
      raise Interrupted(self.stop.received or 'a signal to another process')

  def is_frozen(self, step: int) -> bool:
    """Whether some parameters wait while update `step + 1` is made."""
    until = self.durations.unfreeze_step
    return bool(self.config.init.freeze) and (not until or step < until)

  def steps_at(self, step: int) -> build.Steps:
    """The step functions for update `step + 1`."""
    return self.frozen_steps if self.is_frozen(step) else self.steps

  def replicate(self, tree):
    return parallel.replicate(tree, self.mesh)


@dataclasses.dataclass
class Live:
  """What changes while a run trains."""

  state: state_lib.TrainState
  progress: Progress
  step: int
  batches: parallel.DeviceBatches
  log: TrainLog
  writer: MetricWriter | NoWriter  # of process 0, and of the others
  checkpoints: SharedCheckpoints
  speed: Speed
  rate: float | None = None  # that the state holds; None: not known yet
  phase: int = 0  # entries of config.schedule.lr_multipliers that count
