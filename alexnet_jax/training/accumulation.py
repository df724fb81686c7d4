"""A device's part of a batch, piece by piece, where memory is short."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp


def num_pieces(count: int, most: int) -> int:
  """The smallest number of equal pieces of at most `most` examples each.

  Args:
    count: examples of one device, at least 1.
    most: examples that it may compute at a time; 0: all.
  """
  if not most:
    return 1
  return next(
    pieces
    for pieces in range(1, count + 1)
    if count % pieces == 0 and count // pieces <= most
  )


def accumulate(function: Callable, stats, batch, pieces: int):
  """Gradients and sums of a batch of which pieces are computed in turn.

  Beside what one piece takes, there is one tree of gradients in memory.

  Args:
    function: (stats, batch) -> (grads, stats, sums): gradients of a mean over
      the batch, statistics that go on to the next piece, sums over the batch.
    stats: before the first piece.
    batch: arrays [batch, ...].
    pieces: number of equal pieces; divides the batch. Example i belongs to
      piece i % pieces: with every device doing so, what makes up a piece of the
      global batch depends on the number of pieces alone.

  Returns:
    (grads of the mean over the whole batch, stats after the last piece, sums).
  """
  if pieces == 1:
    return function(stats, batch)

  def one(carry, number):
    grads, stats, sums = carry
    more_grads, stats, more_sums = function(
      stats, _piece(batch, number, pieces)
    )
    return (_added(grads, more_grads), stats, _added(sums, more_sums)), None

  grads, _, sums = jax.eval_shape(function, stats, _piece(batch, 0, pieces))
  start = (_zeros(grads), stats, _zeros(sums))
  (grads, stats, sums), _ = lax.scan(one, start, jnp.arange(pieces))
  return jax.tree.map(lambda leaf: leaf / pieces, grads), stats, sums


def _piece(batch, number, pieces):
  """Every `pieces`-th example, from `number` on; copies no others."""
  return jax.tree.map(
    lambda array: lax.dynamic_index_in_dim(
      array.reshape((-1, pieces, *array.shape[1:])), number, 1, keepdims=False
    ),
    batch,
  )


def _added(left, right):
  return jax.tree.map(jnp.add, left, right)


def _zeros(shapes):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
