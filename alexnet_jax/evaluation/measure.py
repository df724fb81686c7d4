"""Measures a network on a whole split."""

from collections.abc import Callable
from collections.abc import Iterable

from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import metrics


def evaluate(
  eval_step: Callable,
  state,
  batches: Iterable[dict],
  to_devices: Callable[[dict], dict],
  progress: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
  """Loss, top-1 and top-5 over exactly the examples whose mask is set.

  Args:
    eval_step: mapped over the devices, see `training.step.eval_step`.
    state: the network.
    batches: host batches of the split, see `data.pipeline.make_eval_iter`.
    to_devices: starts the transfer of a batch.
    progress: called with the number of batches dispatched.

  Returns:
    {eval/loss (nats), eval/top1, eval/top5 (shares)}, summed in float64 and
    divided once at the end.

  Raises:
    UserError: if no example counts.
  """
  total, pending = {}, None
  for number, batch in enumerate(batches, 1):
    sums = eval_step(state, to_devices(batch))
    # One batch late: the next is under way before the host waits.
    if pending is not None:
      total = metrics.add_sums(total, pending)
    pending = sums
    progress(number)
  if pending is not None:
    total = metrics.add_sums(total, pending)
  if not total.get('count'):
    raise UserError('there is no image to evaluate, or none can be decoded')
  return metrics.ratios(total, 'eval')
