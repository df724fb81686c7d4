"""Convolutions with custom VJPs that are fast in XLA:CPU.

XLA:CPU has a fast convolution for one order of dimensions, and brings others
into it not always well, and not within loops, where they take 5 to 50 times as
long. Here all have that order, a group at a time: those without stride by
Winograd's minimal filtering, and the kernel gradient of those with a stride or
few channels as products of matrices.

Minimal filtering computes m rows of the output of a kernel of r rows by m + r -
1 products, convolutions along the columns, instead of m r (Winograd 1980,
Arithmetic Complexity of Computations; Lavin and Gray 2016, Fast Algorithms for
Convolutional Neural Networks, section 4). Along both axes it would cost what it
saves.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Where the polynomials behind Winograd's filtering are evaluated; infinity is
# one more. Rounding errors grow with their number.
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
_ORDER = ('NHWC', 'HWIO', 'NHWC')  # of dimensions, the one that is fast
# Limits of Winograd's filtering: its roundings grow with the kernel's width,
# and with few channels its transformations cost as much as they save. A
# convolution over so few is no faster than the matrices it can be written as.
_MAX_WIDTH = 5
_LEAST_CHANNELS = 16
_FLAX_DEFAULTS = {'lhs_dilation': (1, 1), 'rhs_dilation': (1, 1)}
_FLAX_DEFAULTS |= {'precision': None}


def convolution(
  images: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  *,
  feature_group_count: int = 1,
  **others,
) -> jax.Array:
  """Computes `lax.conv_general_dilated` as flax' Conv calls it.

  Args:
    images: [batch, height, width, channels].
    kernel: [height, width, channels / groups, features].
    strides: (vertical, horizontal), in pixels.
    padding: 'SAME', 'VALID' or ((top, bottom), (left, right)).
    feature_group_count: number of groups.
    **others: what else flax' Conv passes; ValueError unless it is the default.

  Returns:
    [batch, height, width, features], in the dtype of the images.
  """
  others.pop('dimension_numbers', None)
  if others.items() - _FLAX_DEFAULTS.items():
    raise ValueError(f'{others}: only the defaults of flax are known here')
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      images.shape[1:3], kernel.shape[:2], strides, padding
    )
  padding = tuple((before, after) for before, after in padding)
  return _convolve(images, kernel, tuple(strides), padding, feature_group_count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(images, kernel, strides, padding, groups):
  return jnp.concatenate(
    [
      _convolve_group(part, w, strides, padding)
      for part, w in _by_group(groups, images, kernel)
    ],
    3,
  )


def _forward(images, kernel, *options):
  return _convolve(images, kernel, *options), (images, kernel)


def _backward(strides, padding, groups, saved, gradient):
  sizes = saved[0].shape[1:3]
  images_parts, kernel_parts = [], []
  for part, w, g in _by_group(groups, *saved, gradient):
    images_parts.append(_images_gradient(sizes, strides, padding, w, g))
    kernel_parts.append(_kernel_gradient(w.shape, strides, padding, part, g))
  return jnp.concatenate(images_parts, 3), jnp.concatenate(kernel_parts, 3)


_convolve.defvjp(_forward, _backward)


def _by_group(groups, *arrays):
  """Splits the channels of each array; yields group by group."""
  return zip(*(jnp.split(array, groups, 3) for array in arrays), strict=True)


def _takes_winograd(strides, dtype, kernel_shape, height):
  """Returns True if Winograd's way pays for an output of `height` rows."""
  width = kernel_shape[0]
  return (
    max(strides) == 1
    and min(kernel_shape[2:]) >= _LEAST_CHANNELS
    and dtype == jnp.float32  # lower precision does not bear its roundings
    and 1 < width <= _MAX_WIDTH
    and _num_rows(height, width) > 1
  )


def _convolve_group(images, kernel, strides, padding):
  height = images.shape[1] + sum(padding[0]) - kernel.shape[0] + 1
  if _takes_winograd(strides, images.dtype, kernel.shape, height):
    return _filtered(images, kernel, padding)
  return lax.conv_general_dilated(
    images, kernel, strides, padding, dimension_numbers=_ORDER
  )


def _images_gradient(sizes, strides, padding, kernel, gradient):
  """Convolves the gradient with the kernel, rotated by 180 degrees."""
  around = []
  for axis, (before, _) in enumerate(padding):
    width = kernel.shape[axis]
    span = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
    around.append((width - 1 - before, sizes[axis] + before - span))
  rotated = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
  if max(strides) == 1:
    return _convolve_group(gradient, rotated, strides, around)
  options = {'lhs_dilation': strides, 'dimension_numbers': _ORDER}
  return lax.conv_general_dilated(gradient, rotated, (1, 1), around, **options)


def _kernel_gradient(kernel_shape, strides, padding, images, gradient):
  widths, height = kernel_shape[:2], gradient.shape[1]
  if max(strides) > 1 or kernel_shape[2] < _LEAST_CHANNELS:
    return _folded_gradient(widths, strides, padding, images, gradient)
  if _takes_winograd(strides, images.dtype, kernel_shape, height):
    return _filtered_gradient(images, gradient, widths[0], padding)
  return _direct_gradient(images.transpose(3, 1, 2, 0), gradient, padding)


def _folded_gradient(widths, strides, padding, images, gradient):
  """Returns a kernel's gradient by a product of matrices for each image.

  Blocks of stride x stride pixels become channels: the stride is 1 then.
  """
  outputs = gradient.shape[1:3]
  blocks = [-(-width // s) for width, s in zip(widths, strides, strict=True)]
  folded = _folded(images, strides, padding, outputs, blocks)
  rows, features = blocks[0] * blocks[1] * folded.shape[3], gradient.shape[3]

  def add(total, example):
    image, g = example
    seen = jnp.concatenate(
      [
        image[i : i + outputs[0], j : j + outputs[1]]
        for i in range(blocks[0])
        for j in range(blocks[1])
      ],
      2,
    )
    product = lax.dot_general(
      seen.reshape(-1, rows),
      g.reshape(-1, features),
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    return total + product, None

  total, _ = lax.scan(
    add, jnp.zeros((rows, features), jnp.float32), (folded, gradient)
  )
  vertical, horizontal = strides
  kernel = total.reshape(*blocks, vertical, horizontal, -1, features)
  kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(
    blocks[0] * vertical, blocks[1] * horizontal, -1, features
  )
  return kernel[: widths[0], : widths[1]].astype(images.dtype)


def _folded(images, strides, padding, outputs, blocks):
  """Moves blocks of stride x stride pixels into the channels."""
  sizes = [o - 1 + b for o, b in zip(outputs, blocks, strict=True)]
  # A negative end cuts off pixels that no window sees.
  ends = [
    (before, size * s - before - length, 0)
    for (before, _), size, s, length in zip(
      padding, sizes, strides, images.shape[1:3], strict=True
    )
  ]
  zero = jnp.zeros((), images.dtype)
  padded = lax.pad(images, zero, [(0, 0, 0), *ends, (0, 0, 0)])
  # The pixels of a block's row are neighbors, and move together.
  lines = padded.reshape(len(images), sizes[0], strides[0], sizes[1], -1)
  return lines.transpose(0, 1, 3, 2, 4).reshape(len(images), *sizes, -1)


def _num_rows(height, width):
  """Returns how many rows to compute together; 1 if nothing is gained."""
  most = len(_POINTS) + 2 - width
  # Products for the whole output, of which the last rows may be beyond it.
  return min(
    range(1, max(1, most) + 1),
    key=lambda rows: -(-height // rows) * (rows + width - 1),
  )


@functools.cache
def _matrices(rows, width):
  """Returns the transformations of Toom and Cook, float64.

  output [rows, n], kernel [n, width] and image [n, n], n = rows + width - 1:
  output @ ((kernel @ g) * (image @ d)) is the correlation of d [n] and g.
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


def _filtered(images, kernel, padding):
  """Returns the convolution by Winograd's filtering."""
  width = len(kernel)
  height = images.shape[1] + sum(padding[0]) - width + 1
  rows = _num_rows(height, width)
  output, weights, image = _matrices(rows, width)
  lines = _lines(images, padding[0][0], rows, len(image), height)
  lines = [line.reshape(-1, 1, *line.shape[2:]) for line in lines]
  products = [
    lax.conv_general_dilated(
      line, part, (1, 1), ((0, 0), padding[1]), dimension_numbers=_ORDER
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


def _filtered_gradient(images, gradient, width, padding):
  """Returns the gradient of `_filtered` in its kernel of `width` rows."""
  height = gradient.shape[1]
  rows = _num_rows(height, width)
  output, weights, image = _matrices(rows, width)
  # In the order of `_direct_gradient` from the beginning: to transpose the
  # whole once is cheaper than each combination of its rows.
  turned = images.transpose(3, 1, 2, 0)
  lines = _lines(turned, padding[0][0], rows, len(image), height)
  products = [
    _direct_gradient(line, part, ((0, 0), padding[1]))
    for line, part in zip(
      _combine(image, lines),
      _combine(output.T, _lines(gradient, 0, rows, rows, height)),
      strict=True,
    )
  ]
  return jnp.concatenate(_combine(weights.T, products), 0)


def _direct_gradient(turned, gradient, padding):
  """Returns the same as `_filtered_gradient`, by one convolution.

  `turned` is the images as [channels, height, width, batch].
  """
  return lax.conv_general_dilated(
    turned,
    gradient.transpose(1, 2, 0, 3),
    (1, 1),
    padding,
    dimension_numbers=_ORDER,
  ).transpose(1, 2, 0, 3)


def _lines(images, before, rows, count, height):
  """Returns row i of each block, [batch, blocks, width, channels], by i.

  A block begins every `rows` rows of an output of `height`; i is below `count`.
  """
  blocks = -(-height // rows)
  length = (blocks - 1) * rows + count
  around, rest = (before, length - before - images.shape[1], 0), (0, 0, 0)
  zero = jnp.zeros((), images.dtype)
  padded = lax.pad(images, zero, [rest, around, rest, rest])
  last = (blocks - 1) * rows + 1
  return [padded[:, i : i + last : rows] for i in range(count)]


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
