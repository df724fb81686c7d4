"""The parts of a run: those that stay, and those that change."""

import dataclasses
import pathlib

import jax
import ml_collections

from alexnet_jax import assemble
from alexnet_jax.data import loader
from alexnet_jax.training import guards
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.console import Console
from alexnet_jax.training.console import Speed
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.progress import TrainLog
from alexnet_jax.training.writers import MetricWriter


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
  durations: assemble.Durations
  steps: assemble.Steps
  frozen_steps: assemble.Steps  # until `durations.unfreeze_step`
  data_record: dict

  def to_devices(self, batch: dict) -> dict:
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)

  def is_frozen(self, step: int) -> bool:
    """Whether some parameters wait while update `step + 1` is made."""
    until = self.durations.unfreeze_step
    return bool(self.config.init.freeze) and (not until or step < until)

  def steps_at(self, step: int) -> assemble.Steps:
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
  writer: MetricWriter
  checkpoints: Checkpoints
  speed: Speed
  rate: float | None = None  # that the state holds; None: not known yet
