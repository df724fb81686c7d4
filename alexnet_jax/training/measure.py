"""Measures a network on a whole split."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import itertools

import jax
import numpy as np
import scipy.sparse

from alexnet_jax.errors import Interrupted, UserError
from alexnet_jax.training import metrics


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The predictions for every example of a split, in the split's order."""

  labels: np.ndarray  # true classes, int32 [n]
  counts: np.ndarray  # bool [n]; False for images that could not be decoded
  classes: np.ndarray  # int32 [n, k], the best first
  probabilities: np.ndarray  # float32 [n, k]
  loss: np.ndarray  # float32 [n], in nats


@dataclasses.dataclass(frozen=True)
class Measured:
  """The measures of a network on a split."""

  # {eval/loss (nats), eval/top1, eval/top5 (shares), eval/macro_f1, ...}: sums
  # in float64, divided once at the end; see also `metrics.averaged_measures`.
  values: dict[str, float]
  confusion: scipy.sparse.csr_array  # see `metrics.confusion_matrix`
  predictions: Predictions


def one_late(results: Iterable) -> Iterator:
  """Yields each result when the next is under way, before the host waits."""
  for result, _ in itertools.pairwise(itertools.chain(results, (None,))):
    yield result


def evaluate(
  eval_step: Callable,
  state,
  batches: Iterable[dict],
  to_devices: Callable[[dict], dict],
  progress: Callable[[int], None] = lambda done: None,
  num_examples: int | None = None,
) -> Measured:
  """Measures over exactly the examples whose mask is set.

  For the mapped `eval_step` see `training.step`, for the host batches
  `data.pipeline.eval_dataset`; `to_devices` starts the transfer of one,
  `progress` is called with the number dispatched. Without `num_examples` of the
  split predictions have the last batch's padding. Raises UserError if no
  example counts, and Interrupted after a batch whose stop flag was set.
  """

  def results():
    for number, batch in enumerate(batches, 1):
      yield eval_step(state, to_devices(batch))
      progress(number)

  total, parts, num_classes = {}, [], 0
  for sums in one_late(results()):
    if float(sums.pop('stop', 0)):
      raise Interrupted('a signal to one of the processes')
    parts.append(jax.device_get(sums.pop('examples')))
    num_classes = int(sums.pop('num_classes'))
    total = metrics.add_sums(total, sums)
  if not total.get('count'):
    raise UserError('there is no image to evaluate, or none can be decoded')
  joined = jax.tree.map(
    lambda *part: np.concatenate(part)[:num_examples], *parts
  )
  predictions = Predictions(**joined)
  counts = predictions.counts
  confusion = metrics.confusion_matrix(
    predictions.labels[counts], predictions.classes[counts, 0], num_classes
  )
  averages = metrics.averaged_measures(confusion, 'eval')
  values = metrics.ratios(total, 'eval') | averages
  return Measured(values, confusion, predictions)
