"""What the host knows about a run besides its TrainState; saved as JSON."""

import dataclasses

from alexnet_jax.training import guards
from alexnet_jax.training import metrics
from alexnet_jax.training.schedule import PlateauState
from alexnet_jax.training.schedule import StoppingState


@dataclasses.dataclass
class Best:
  """Value and step of the best evaluation so far; None before the first."""

  value: float | None = None
  step: int | None = None


@dataclasses.dataclass
class Progress:
  """The part of a run's state that lives on the host.

  Attributes:
    plateau: see `schedule.ReduceOnPlateau`.
    stopping: see `schedule.EarlyStopping`.
    best: by the monitor of the checkpoints.
    evaluations: how many there were at the end of an interval.
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
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict) -> 'Progress':
    return cls(
      **{
        **fields,
        'plateau': PlateauState(**fields['plateau']),
        'stopping': StoppingState(**fields['stopping']),
        'best': Best(**fields['best']),
      }
    )

  def final_step(self, config, newest: int) -> int:
    """The step a run ends with: the best if it restores that, or `newest`."""
    stopping = config.early_stopping
    if stopping.enabled and stopping.restore_best:
      return self.stopping.best_step or newest
    return newest


class TrainLog:
  """Fetches the sums of each step one step late, and adds them up.

  By then the next step is under way, so that the device is never idle while
  the host waits for a number.
  """

  def __init__(self, progress: Progress, step: int):
    self._progress = progress
    self._pending = None
    self._last_finite = step
    self.saved_step: int | None = None  # for the message of a lost run
    self.stop_asked = False  # by a signal to any process

  def add(self, step: int, sums: dict) -> None:
    """Takes the sums of the update that led to `step`, still on the device.

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
    """(means, loss of each step) since the last call; forgets them."""
    self.flush()
    progress = self._progress
    sums, progress.train_sums = progress.train_sums, {}
    losses, progress.step_losses = progress.step_losses, []
    return metrics.ratios(sums, 'train'), losses
