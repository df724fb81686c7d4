"""Stride-1 convolution with Winograd's minimal filtering, along rows.

Several rows of the output are computed together from transformed rows of input
and kernel: m rows of a kernel of r rows take m + r - 1 products instead of m r
(Winograd 1980, Arithmetic Complexity of Computations; Lavin and Gray 2016, Fast
Algorithms for Convolutional Neural Networks, section 4). Each product is a
convolution along the columns. Only rows are transformed: transformations along
both axes would cost what they save.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# The points at which the polynomials behind it are evaluated; infinity is one
# more. Rounding errors grow with their number.
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)

ORDER = ('NHWC', 'HWIO', 'NHWC')  # of dimensions, the one that is fast
# ((top, bottom), (left, right)), in pixels.
Padding = tuple[tuple[int, int], tuple[int, int]]


def num_rows(height: int, width: int) -> int:
  """Returns how many rows of an output to compute together.

  It is 1 if nothing is gained. `width` is that of the kernel.
  """
  most = len(_POINTS) + 2 - width
  # Products for the whole output, of which the last rows may be beyond it.
  return min(
    range(1, max(1, most) + 1),
    key=lambda rows: -(-height // rows) * (rows + width - 1),
  )


@functools.cache
def matrices(rows: int, width: int) -> tuple[np.ndarray, ...]:
  """Returns the transformations of Toom and Cook.

  y = output @ ((kernel @ g) * (image @ d)) is the correlation of
  d [rows + width - 1] with g [width], for every d and g.

  Args:
    rows: number of rows of the output that are computed together.
    width: width of the kernel.

  Returns:
    (output [rows, n], kernel [n, width], image [n, n]), float64, with
    n = rows + width - 1 products.
  """
  count = rows + width - 1
  points = np.array(_POINTS[: count - 1])
  output, kernel = np.zeros((rows, count)), np.zeros((count, width))
  image = np.zeros((count, count))
  for j, point in enumerate(points):
    others = np.delete(points, j)
    output[:, j] = point ** np.arange(rows)
    kernel[j] = point ** np.arange(width) / np.prod(point - others)
    image[j, :-1] = np.atleast_1d(np.poly(others))[::-1]
  output[-1, -1] = kernel[-1, -1] = 1  # infinity
  image[-1] = np.poly(points)[::-1]
  return output, kernel, image


def convolve(
  images: jax.Array, kernel: jax.Array, padding: Padding
) -> jax.Array:
  """Returns the convolution [batch, height, width, features].

  Args:
    images: [batch, height, width, channels].
    kernel: [rows, columns, channels, features].
    padding: ((top, bottom), (left, right)), in pixels.
  """
  width = len(kernel)
  height = images.shape[1] + sum(padding[0]) - width + 1
  rows = num_rows(height, width)
  output, weights, image = matrices(rows, width)
  lines = _lines(images, padding[0][0], rows, len(image), height)
  products = [
    lax.conv_general_dilated(
      line, part, (1, 1), ((0, 0), padding[1]), dimension_numbers=ORDER
    )
    for line, part in zip(
      _combine(image, lines),
      _combine(weights, [kernel[i : i + 1] for i in range(width)]),
      strict=True,
    )
  ]
  lines = _combine(output, products)
  # [batch, blocks of rows, rows, width, features]
  blocks = jnp.stack(
    [line.reshape(len(images), -1, *line.shape[2:]) for line in lines], 2
  )
  return blocks.reshape(len(images), -1, *blocks.shape[3:])[:, :height]


def kernel_gradient(
  images: jax.Array, gradient: jax.Array, width: int, padding: Padding
) -> jax.Array:
  """Returns the gradient of `convolve` in its kernel of `width` rows.

  It needs the images and the gradient of the output.
  """
  height = gradient.shape[1]
  rows = num_rows(height, width)
  output, weights, image = matrices(rows, width)
  lines = _lines(images, padding[0][0], rows, len(image), height)
  products = [
    direct_kernel_gradient(line, part, ((0, 0), padding[1]))
    for line, part in zip(
      _combine(image, lines),
      _combine(output.T, _lines(gradient, 0, rows, rows, height)),
      strict=True,
    )
  ]
  return jnp.concatenate(_combine(weights.T, products), 0)


def direct_kernel_gradient(
  images: jax.Array, gradient: jax.Array, padding: Padding
) -> jax.Array:
  """Returns the same as `kernel_gradient`, without Winograd's filtering.

  It is a convolution that sums over the batch: the channels of the images are
  its batch, and the examples its channels.
  """
  return lax.conv_general_dilated(
    images.transpose(3, 1, 2, 0),
    gradient.transpose(1, 2, 0, 3),
    (1, 1),
    padding,
    dimension_numbers=ORDER,
  ).transpose(1, 2, 0, 3)


def _lines(images, before, rows, count, height):
  """Returns row i of each block, [batch * blocks, 1, width, channels], by i.

  A block begins every `rows` rows, as many as an output of `height` needs; i is
  below `count`.
  """
  blocks = -(-height // rows)
  length = (blocks - 1) * rows + count
  around, rest = (before, length - before - images.shape[1], 0), (0, 0, 0)
  zero = jnp.zeros((), images.dtype)
  padded = lax.pad(images, zero, [rest, around, rest, rest])
  last = (blocks - 1) * rows + 1
  return [
    padded[:, i : i + last : rows].reshape(-1, 1, *images.shape[2:])
    for i in range(count)
  ]


def _combine(matrix, parts):
  """Returns matrix @ parts, without the terms that are zero."""
  return [
    functools.reduce(
      jnp.add,
      [
        part if factor == 1 else part * np.asarray(factor, part.dtype)
        for factor, part in zip(line, parts, strict=True)
        if factor
      ],
    )
    for line in matrix
  ]
