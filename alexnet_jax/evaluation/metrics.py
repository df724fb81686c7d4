"""Sums on the device, ratios on the host."""

import jax
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


def add_sums(total: dict[str, float], sums: dict) -> dict[str, float]:
  """total + sums on the host, in float64; `total` may be empty."""
  return {
    name: total.get(name, 0.0) + float(value) for name, value in sums.items()
  }


def ratios(sums: dict[str, float], prefix: str) -> dict[str, float]:
  """{prefix/loss, prefix/top1, prefix/top5} of sums with a positive count.

  If images that cannot be decoded are skipped, also prefix/unreadable: how
  often that happened.
  """
  values = {
    f'{prefix}/{name}': sums[name] / sums['count']
    for name in ('loss', 'top1', 'top5')
  }
  if 'unreadable' in sums:
    values[f'{prefix}/unreadable'] = int(sums['unreadable'])
  return values
