"""Sums on the device, ratios on the host."""

import jax
from jax import lax
import jax.numpy as jnp
import optax


def example_sums(
  logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Sums over the examples of one device's batch.

  Args:
    logits: float32 [batch, num_classes].
    labels: int32 [batch].
    mask: bool [batch], False for examples that do not count; None: all count.

  Returns:
    {loss, top1, top5: float32 [], count: int32 []}: the cross-entropy in nats
    and the numbers of examples whose label is among the one and the five
    largest logits. Equal logits rank by class number, as argmax does.
  """
  mask = jnp.ones(labels.shape, bool) if mask is None else mask
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  own = jnp.take_along_axis(logits, labels[:, None], axis=1)
  earlier = jnp.arange(logits.shape[1])[None, :] < labels[:, None]
  rank = jnp.sum((logits > own) | ((logits == own) & earlier), axis=1)
  # Nothing exceeds a NaN, which must not make it one of the best guesses.
  rank = jnp.where(jnp.isnan(own[:, 0]), 5, rank)
  return {
    'loss': jnp.sum(losses, where=mask),
    'top1': jnp.sum(rank < 1, where=mask, dtype=jnp.float32),
    'top5': jnp.sum(rank < 5, where=mask, dtype=jnp.float32),
    'count': jnp.sum(mask, dtype=jnp.int32),
  }


def confusion_matrix(
  logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> jax.Array:
  """Counts of (true class, predicted class), int32 [classes, classes].

  Args:
    logits: float32 [batch, classes]; of equal ones the first class wins.
    labels: int32 [batch].
    mask: bool [batch], False for examples that do not count.
  """
  classes = logits.shape[1]
  counts = jnp.zeros((classes, classes), jnp.int32)
  predicted = jnp.argmax(logits, axis=1)
  return counts.at[labels, predicted].add(mask.astype(jnp.int32))


def best_classes(
  logits: jax.Array, labels: jax.Array, count: int
) -> dict[str, jax.Array]:
  """The best classes of each example, and how wrong the network is.

  Args:
    logits: float32 [batch, classes].
    labels: int32 [batch].
    count: how many classes; all, if there are fewer.

  Returns:
    {classes: int32 [batch, count], best first, probabilities: float32 [batch,
    count], loss: float32 [batch], the cross-entropy in nats}.
  """
  count = min(count, logits.shape[1])
  # Ranked by the logits: small probabilities may all be 0.
  _, classes = lax.top_k(logits, count)
  probabilities = jnp.take_along_axis(jax.nn.softmax(logits), classes, axis=1)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return {'classes': classes, 'probabilities': probabilities, 'loss': losses}


def add_sums(total: dict[str, float], sums: dict) -> dict[str, float]:
  """total + sums on the host, in float64; `total` may be empty."""
  return {
    name: total.get(name, 0.0) + float(value) for name, value in sums.items()
  }


def ratios(sums: dict[str, float], prefix: str) -> dict[str, float]:
  """{prefix/loss, prefix/top1, prefix/top5} of sums with a positive count.

  If training minimizes more than the cross-entropy, also prefix/objective; if
  images that cannot be decoded are skipped, also prefix/unreadable: how often
  that happened.
  """
  values = {
    f'{prefix}/{name}': sums[name] / sums['count']
    for name in ('loss', 'top1', 'top5', 'objective')
    if name in sums
  }
  if 'unreadable' in sums:
    values[f'{prefix}/unreadable'] = int(sums['unreadable'])
  return values
