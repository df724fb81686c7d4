"""The host's part of a run's state: what a checkpoint holds besides arrays."""

from collections.abc import Mapping
import dataclasses
import importlib.metadata
import math
import platform
import time
import typing

import ml_collections

from alexnet_jax import config as config_lib, files
from alexnet_jax.training import guards, metrics, schedule
from alexnet_jax.training.schedule import PlateauState, StoppingState

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_PACKAGES += ('numpy', 'simplejpeg', 'pillow', 'numba')  # they decide pixels


@dataclasses.dataclass
class Best:
  """Value and step of the best evaluation so far; None before the first."""

  value: float | None = None
  step: int | None = None


@dataclasses.dataclass
class Progress:
  """The memory of a run: its evaluations, and the steps since a log point."""

  plateau: PlateauState
  stopping: StoppingState = dataclasses.field(default_factory=StoppingState)
  best: Best = dataclasses.field(default_factory=Best)
  evaluated_step: int = 0  # of the last one, or of the one that ended a run
  last_evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
  # Sums and losses of the steps since the last log point: after a resume the
  # next one counts the steps before it.
  train_sums: dict[str, float] = dataclasses.field(default_factory=dict)
  step_losses: list[float] = dataclasses.field(default_factory=list)

  def final_step(self, config, newest: int) -> int:
    """Returns the step a run ends with: the best if it restores that."""
    options, stopping = config.early_stopping, self.stopping
    if not (options.enabled and options.restore_best):
      return newest
    if self.evaluated_step == newest:
      # Early stopping did not see it if it is off the interval.
      value = self.last_evaluation[options.monitor]
      stopping = schedule.update_stopping(options, stopping, value, newest)
    return stopping.best_step or newest

  def add_evaluation(
    self, config, values: dict, step: int, due: bool, warming: bool = False
  ) -> None:
    """Shows an evaluation to the best, the plateau and early stopping.

    One that is not `due`, at the end of a run, is hidden from plateau and early
    stopping: a longer run would have none. One in the warm-up, `warming`, is
    hidden from the plateau.
    """
    self.evaluated_step, self.last_evaluation = step, values
    monitor = config.checkpoint.monitor
    if schedule.is_improvement(values[monitor], self.best.value, monitor):
      self.best = Best(values[monitor], step)
    if not due:
      return
    plateau, stopping = config.schedule, config.early_stopping
    if plateau.name == 'plateau' and not warming:
      self.plateau = schedule.update_plateau(
        plateau, self.plateau, values[plateau.monitor]
      )
    if stopping.enabled:
      self.stopping = schedule.update_stopping(
        stopping, self.stopping, values[stopping.monitor], step
      )


def versions() -> dict[str, str]:
  """Returns the versions of Python and of packages that decide numbers."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), **found}


@dataclasses.dataclass(frozen=True)
class DataRecord:
  """The data of a run: all that must stay for equal batches after a resume.

  Weights from elsewhere have class names alone.
  """

  class_names: list[str]
  fingerprint: str = ''  # of the training split
  num_examples: int = 0
  eval_fingerprint: str = ''  # of the validation split
  eval_num_examples: int = 0
  global_batch_size: int = 0
  seed: int = 0
  order: str = ''  # `order.digest`


@dataclasses.dataclass(frozen=True)
class SavedRun:
  """The part of a checkpoint that is not arrays."""

  config: ml_collections.ConfigDict
  data: DataRecord
  progress: Progress
  iterator: Mapping  # the position of the training batches
  devices: int = 1
  processes: int = 1
  num_microbatches: int = 1  # of a device's batch, see `step.accumulate`
  imported: Mapping | None = None  # where weights from elsewhere come from
  digest: str = ''  # `state.state_digest`; set by `Checkpoints.save`
  versions: Mapping = dataclasses.field(default_factory=versions)

  @property
  def num_steps(self) -> int:
    """Returns how many steps the run was to have; 0 of imported weights."""
    if self.imported is not None:
      return 0
    count = self.data.num_examples
    return schedule.resolve_durations(self.config, count).num_steps

  def is_done(self, step: int) -> bool:
    """Returns True if the run ended with this step, its newest."""
    return self.progress.stopping.stopped or step >= self.num_steps

  def to_json(self) -> dict:
    """Returns the fields as an object for JSON."""
    data, progress = map(dataclasses.asdict, (self.data, self.progress))
    config = self.config.to_dict()
    return {**vars(self), 'config': config, 'data': data, 'progress': progress}

  @classmethod
  def from_json(cls, fields: Mapping) -> 'SavedRun':
    """Returns what `to_json` gave; ValueError names what is of another kind."""
    shape = json_shape(cls) | {'config': dict, 'iterator': {'next_index': int}}
    if wrong := files.misfit(fields, shape, 'it'):
      raise ValueError(wrong)
    data = from_fields(DataRecord, fields['data'])
    if not data.class_names:
      raise ValueError('class_names is empty')
    config, saved = config_lib.from_dict(fields['config']), fields['progress']
    kinds = {'plateau': PlateauState, 'stopping': StoppingState, 'best': Best}
    parts = {k: from_fields(kind, saved[k]) for k, kind in kinds.items()}
    progress = from_fields(Progress, {**saved, **parts})
    own = {'config': config, 'data': data, 'progress': progress}
    return from_fields(cls, {**fields, **own})


def from_fields(kind: type, fields: Mapping):
  """Returns a dataclass of fields that fit; ValueError names unknown ones."""
  names = {field.name for field in dataclasses.fields(kind)}
  if unknown := sorted(fields.keys() - names):
    raise ValueError(f'unknown: {", ".join(unknown)}')
  return kind(**fields)


def json_shape(kind: type) -> type | dict | list:
  """Returns the shape of a type's JSON, as `files.misfit` takes it."""
  origin, inner = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return {k: json_shape(v) for k, v in typing.get_type_hints(kind).items()}
  if origin is dict:
    return {str: json_shape(inner[1])}
  if origin is list:
    return [json_shape(inner[0])]
  return int | kind if isinstance(0.0, kind) else kind


class TrainLog:
  """Fetches the sums of each step one step late, and adds them up.

  By then the next step is under way, so that the device is never idle while
  the host waits for a number. `on_step` is called with step and metrics.
  """

  def __init__(
    self, progress: Progress, step: int, on_step=None, save_minutes: float = 0
  ):
    """Takes the minutes between two saves; 0: the clock asks for none."""
    self._progress, self._on_step = progress, on_step
    self._pending = None
    self._last_finite = step
    self._save_seconds = 60 * save_minutes or math.inf
    self.stop_asked = False  # a signal came to one of the processes
    self.restart_timer()

  def restart_timer(self) -> None:
    """Begins anew to wait for the time of the next save."""
    self.save_asked = False
    self._save_due = time.monotonic() + self._save_seconds

  def is_save_due(self) -> bool:
    """Returns True once when the time for a save has come; then False."""
    if time.monotonic() < self._save_due:
      return False
    self._save_due = math.inf
    return True

  def add(self, step: int, sums: dict) -> None:
    """Adds the sums of the update that led to `step`, still on the device.

    Raises NonFiniteLossError if the loss of the one before is not finite.
    """
    self._count_pending((step, sums))

  def flush(self) -> None:
    """Waits for the sums that were added last. Raises as `add` does."""
    self._count_pending(None)

  def _count_pending(self, following):
    pending, self._pending = self._pending, following
    if pending is None:
      return
    step, sums = pending
    sums = metrics.add_sums({}, sums)
    self.stop_asked |= sums.pop('stop', 0) > 0
    self.save_asked |= sums.pop('save', 0) > 0
    loss = sums['loss'] / sums['count']
    guards.check_finite(loss, step, self._last_finite)
    self._last_finite = step
    progress = self._progress
    progress.step_losses.append(float(f'{loss:.7g}'))
    progress.train_sums = metrics.add_sums(progress.train_sums, sums)
    if on_step := self._on_step:
      self._on_step = None  # the save after an error counts one more step
      on_step(step, metrics.ratios(sums, 'train'))
      self._on_step = on_step

  def take(self) -> tuple[dict[str, float], list[float]]:
    """Returns and forgets (means, loss of each step) since the last call."""
    self.flush()
    progress = self._progress
    sums, progress.train_sums = progress.train_sums, {}
    losses, progress.step_losses = progress.step_losses, []
    return metrics.ratios(sums, 'train'), losses
