"""The host's part of a run's state: metrics, plateau, early stopping."""

import dataclasses

from alexnet_jax.training import guards
from alexnet_jax.training import metrics
from alexnet_jax.training import schedule
from alexnet_jax.training.schedule import PlateauState
from alexnet_jax.training.schedule import StoppingState


@dataclasses.dataclass
class Best:
  """Value and step of the best evaluation so far; None before the first."""

  value: float | None = None
  step: int | None = None


@dataclasses.dataclass
class Progress:
  """The part of a run's state that lives on the host; JSON in a checkpoint.

  Attributes:
    plateau: see `schedule.update_plateau`.
    stopping: see `schedule.update_stopping`.
    best: the best evaluation, by config.checkpoint.
    evaluations: number of evaluations at the end of an interval.
    evaluated_step: step of the last one, or of the one that ended a run.
    last_evaluation: its metrics.
    train_sums: sums over the steps since the last log point, so that a log
      point after a resume counts the steps before it.
    step_losses: the mean loss of each of these steps, rounded to 7 digits.
  """

  plateau: PlateauState
  stopping: StoppingState = dataclasses.field(default_factory=StoppingState)
  best: Best = dataclasses.field(default_factory=Best)
  evaluations: int = 0
  evaluated_step: int = 0
  last_evaluation: dict = dataclasses.field(default_factory=dict)
  train_sums: dict = dataclasses.field(default_factory=dict)
  step_losses: list = dataclasses.field(default_factory=list)

  def to_json(self) -> dict:
    """Returns the fields as an object for JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict) -> 'Progress':
    """Returns what `to_json` gave."""
    return cls(
      **{
        **fields,
        'plateau': PlateauState(**fields['plateau']),
        'stopping': StoppingState(**fields['stopping']),
        'best': Best(**fields['best']),
      }
    )

  def final_step(self, config, newest: int) -> int:
    """Returns the step a run ends with: the best if it restores that."""
    stopping = config.early_stopping
    if stopping.enabled and stopping.restore_best:
      return self.stopping.best_step or newest
    return newest

  def add_evaluation(
    self, config, values: dict, step: int, due: bool, warming: bool = False
  ) -> None:
    """Shows an evaluation to the best, the plateau and early stopping.

    Args:
      due: whether it ends an interval. Otherwise it ends a run, where a longer
        run would have none, and plateau and early stopping do not see it.
      warming: whether it is of the warm-up, which the plateau does not see.
    """
    self.evaluated_step = step
    self.last_evaluation = values
    monitor = config.checkpoint.monitor
    value = values[monitor]
    if schedule.is_improvement(value, self.best.value, monitor):
      self.best = Best(value, step)
    if not due:
      return
    self.evaluations += 1
    plateau, stopping = config.schedule, config.early_stopping
    if plateau.name == 'plateau' and not warming:
      self.plateau = schedule.update_plateau(
        plateau, self.plateau, values[plateau.monitor]
      )
    if stopping.enabled:
      self.stopping = schedule.update_stopping(
        stopping, self.stopping, values[stopping.monitor], step
      )


class TrainLog:
  """Fetches the sums of each step one step late, and adds them up.

  By then the next step is under way, so that the device is never idle while
  the host waits for a number.
  """

  def __init__(self, progress: Progress, step: int):
    self._progress = progress
    self._pending = None
    self._last_finite = step
    self.saved_step: int | None = None  # for the message on a NaN loss
    self.stop_asked = False  # a signal came to one of the processes

  def add(self, step: int, sums: dict) -> None:
    """Adds the sums of the update that led to `step`, still on the device.

    Raises:
      NonFiniteLossError: if the loss of the update before it is not finite.
    """
    self.flush()
    self._pending = step, sums

  def flush(self) -> None:
    """Waits for the sums that were added last. Raises as `add` does."""
    if self._pending is None:
      return
    step, sums = self._pending
    self._pending = None
    sums = metrics.add_sums({}, sums)
    self.stop_asked |= sums.pop('stop', 0) > 0
    loss = sums['loss'] / sums['count']
    guards.check_finite(loss, step, self._last_finite, self.saved_step)
    self._last_finite = step
    self._progress.step_losses.append(float(f'{loss:.7g}'))
    self._progress.train_sums = metrics.add_sums(
      self._progress.train_sums, sums
    )

  def take(self) -> tuple[dict[str, float], list[float]]:
    """Returns and forgets (means, loss of each step) since the last call."""
    self.flush()
    progress = self._progress
    sums, progress.train_sums = progress.train_sums, {}
    losses, progress.step_losses = progress.step_losses, []
    return metrics.ratios(sums, 'train'), losses
