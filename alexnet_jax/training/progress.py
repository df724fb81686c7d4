"""What the host knows about a run besides its TrainState; saved as JSON."""

import dataclasses

from alexnet_jax.evaluation import metrics
from alexnet_jax.training import guards
from alexnet_jax.training.schedule import PlateauState
from alexnet_jax.training.schedule import StoppingState


@dataclasses.dataclass
class Progress:
  """The part of a run's state that lives on the host.

  Attributes:
    plateau: see `schedule.ReduceOnPlateau`.
    stopping: see `schedule.EarlyStopping`.
    best: value and step of the best evaluation so far.
    evaluations: how many there were.
    evaluated_step: step of the last one.
    last_evaluation: its metrics.
    train_sums: sums over the steps since the last log point, so that a log
      point after a resume counts the steps before it.
  """

  plateau: PlateauState
  stopping: StoppingState = dataclasses.field(default_factory=StoppingState)
  best: StoppingState = dataclasses.field(default_factory=StoppingState)
  evaluations: int = 0
  evaluated_step: int = 0
  last_evaluation: dict = dataclasses.field(default_factory=dict)
  train_sums: dict = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict) -> 'Progress':
    return cls(
      **{
        **fields,
        'plateau': PlateauState(**fields['plateau']),
        'stopping': StoppingState(**fields['stopping']),
        'best': StoppingState(**fields['best']),
      }
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
    self.saved_step: int | None = None  # for the message of a lost run

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
    guards.check_finite(
      sums['loss'] / sums['count'], step, self._last_finite, self.saved_step
    )
    self._last_finite = step
    self._progress.train_sums = metrics.add_sums(
      self._progress.train_sums, sums
    )

  def take(self) -> dict[str, float]:
    """The means since the last call, and forgets them."""
    self.flush()
    sums, self._progress.train_sums = self._progress.train_sums, {}
    return metrics.ratios(sums, 'train')
