"""Max-pooling, plain and with a gradient that only compares."""

import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp


def max_pool(
  x: jax.Array, size: int, stride: int, form: str = 'plain'
) -> jax.Array:
  """The largest of each window, without padding.

  Args:
    x: [batch, height, width, channels].
    size: width of the windows, in pixels.
    stride: distance of the windows, in pixels.
    form: `plain`, whose gradient selects and scatters, or `compared`, whose
      gradient compares shifted slices: the same numbers, without a scatter.

  Returns:
    [batch, (height - size) // stride + 1, ..., channels].
  """
  if form == 'compared':
    return _compared(x, size, stride)
  return _plain(x, size, stride)


def _plain(x, size, stride):
  # With keywords: jax2onnx knows no other call.
  return nn.max_pool(
    x, window_shape=(size, size), strides=(stride, stride), padding='VALID'
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _compared(x, size, stride):
  return _plain(x, size, stride)


def _forward(x, size, stride):
  y = _compared(x, size, stride)
  return y, (x, y)


def _backward(size, stride, saved, gradient):
  x, y = saved
  place = _first_place(x, y, size, stride)
  return (_spread(place, gradient, x.shape, size, stride),)


_compared.defvjp(_forward, _backward)


def _first_place(x, y, size, stride):
  """Where in each window its largest value is: the first of several, row by
  row, as `nn.max_pool` selects; row * size + column, as y.
  """
  rows, columns = ((n - 1) * stride + 1 for n in y.shape[1:3])
  dtype = jnp.uint8 if size < 16 else jnp.int32
  place = jnp.zeros(y.shape, dtype)
  for number in reversed(range(size * size)):
    i, j = divmod(number, size)
    part = x[:, i : i + rows : stride, j : j + columns : stride]
    place = jnp.where(part == y, jnp.array(number, dtype), place)
  return place


def _spread(place, gradient, shape, size, stride):
  """Each pixel's sum of the gradients of the windows that chose it.

  The pixels whose coordinates leave the same remainders by the stride are in
  the same places of their windows, so they are computed together.
  """
  _, height, width, channels = shape
  planes_shape = (-(-height // stride), -(-width // stride))
  planes = jnp.stack(
    [
      jnp.stack(
        [
          _plane(place, gradient, planes_shape, size, stride, i, j)
          for j in range(stride)
        ],
        3,
      )
      for i in range(stride)
    ],
    2,
  )
  rows, columns = (n * stride for n in planes_shape)
  return planes.reshape((-1, rows, columns, channels))[:, :height, :width]


def _plane(place, gradient, planes_shape, size, stride, row, column):
  """The sums at the pixels (row + stride * a, column + stride * b)."""
  zero = jnp.zeros((), gradient.dtype)
  batch, rows, columns, channels = gradient.shape
  total = jnp.zeros((batch, *planes_shape, channels), gradient.dtype)
  for i in range(row, size, stride):
    for j in range(column, size, stride):
      chosen = jnp.where(place == i * size + j, gradient, zero)
      before = i // stride, j // stride
      after = (
        planes_shape[0] - rows - before[0],
        planes_shape[1] - columns - before[1],
      )
      total += lax.pad(
        chosen,
        zero,
        [
          (0, 0, 0),
          (before[0], after[0], 0),
          (before[1], after[1], 0),
          (0, 0, 0),
        ],
      )
  return total
