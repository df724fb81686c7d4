"""Measures a network on a whole split."""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import functools

import jax
import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.training import metrics


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The predictions for every example of a split, in the split's order.

  Attributes:
    labels: true classes, int32 [n].
    counts: bool [n]; False for images that could not be decoded.
    classes: int32 [n, k], the best first.
    probabilities: float32 [n, k].
    loss: float32 [n], in nats.
  """

  labels: np.ndarray
  counts: np.ndarray
  classes: np.ndarray
  probabilities: np.ndarray
  loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
  """The measures of a network on a split.

  Attributes:
    values: {eval/loss (nats), eval/top1, eval/top5 (shares), eval/macro_f1,
      ...}: sums in float64, divided once at the end; see also
      `metrics.averaged_measures`.
    confusion: counts of (true class, predicted class), int64 [classes,
      classes].
    predictions: of every example, if `eval_step` gives them.
  """

  values: dict[str, float]
  confusion: np.ndarray
  predictions: Predictions | None


@functools.partial(jax.jit, donate_argnums=0)
def _add(total, counts):
  return total + counts


def evaluate(
  eval_step: Callable,
  state,
  batches: Iterable[dict],
  to_devices: Callable[[dict], dict],
  progress: Callable[[int], None] = lambda done: None,
  num_examples: int | None = None,
  stop: Callable[[], None] = lambda: None,
) -> Measured:
  """Measures over exactly the examples whose mask is set.

  Args:
    eval_step: mapped over the devices, see `training.step.eval_step`.
    state: the network.
    batches: host batches of the split, see `data.pipeline.make_eval_iter`.
    to_devices: starts the transfer of a batch.
    progress: called with the number of batches dispatched.
    num_examples: of the split; without what fills the last batch up. Needed
      for predictions.
    stop: called after a batch that carried a signal which came to one of the
      processes.

  Raises:
    UserError: if no example counts.
  """
  taken, confusion, pending = _Taken(stop), None, None
  for number, batch in enumerate(batches, 1):
    sums = eval_step(state, to_devices(batch))
    # The matrix stays on the device until the end.
    counts = sums.pop('confusion')
    confusion = counts if confusion is None else _add(confusion, counts)
    # One batch late: the next is under way before the host waits.
    if pending is not None:
      taken.fetch(*pending)
    pending = sums, batch
    progress(number)
  if pending is not None:
    taken.fetch(*pending)
  if not taken.total.get('count'):
    raise UserError('there is no image to evaluate, or none can be decoded')
  confusion = np.asarray(confusion, np.int64)
  values = metrics.ratios(taken.total, 'eval') | {
    f'eval/{name}': value
    for name, value in metrics.averaged_measures(confusion).items()
  }
  return Measured(values, confusion, _predictions(taken.parts, num_examples))


class _Taken:
  """The sums and predictions that came to the host."""

  def __init__(self, stop):
    self.total, self.parts, self._stop = {}, [], stop

  def fetch(self, sums, batch):
    """Waits for the results of one batch."""
    if float(sums.pop('stop', 0)):
      self._stop()
    if 'examples' in sums:
      examples = jax.device_get(sums.pop('examples'))
      self.parts.append(
        {'label': batch['label'], 'mask': batch['mask'], **examples}
      )
    self.total = metrics.add_sums(self.total, sums)


def _predictions(parts, num_examples):
  if not parts:
    return None
  whole = {
    name: np.concatenate([part[name] for part in parts])[:num_examples]
    for name in parts[0]
  }
  return Predictions(
    labels=whole['label'],
    counts=whole['mask'],
    classes=whole['classes'],
    probabilities=whole['probabilities'],
    loss=whole['loss'],
  )
