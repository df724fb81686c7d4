"""Convolutions with custom VJPs that are fast in XLA:CPU.

XLA's CPU compiler has a fast convolution for one order of dimensions. It brings
the convolutions of automatic differentiation into that order, but not always
well, and not within loops, where they take 5 to 50 times as long. Here all have
that order, a group at a time, between transpositions: those without stride by
Winograd's minimal filtering, and the kernel gradient of those with a stride as
products of matrices.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from alexnet_jax.models import winograd

# Limits of Winograd's filtering: its roundings grow with the kernel's width,
# and with few channels its transformations cost as much as they save.
_MAX_WIDTH = 5
_LEAST_CHANNELS = 16

_DILATIONS = {'lhs_dilation', 'rhs_dilation'}
_FLAX_OPTIONS = _DILATIONS | {'dimension_numbers', 'precision'}


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
    **others: further arguments that flax' Conv passes: dilations of 1, no
      precision, and the dimension numbers of these shapes.

  Returns:
    [batch, height, width, features], in the dtype of the images.

  Raises:
    ValueError: if anything else is asked for, such as a dilation.
  """
  dilations = {d for name in _DILATIONS for d in others.get(name, ())}
  if (
    others.keys() - _FLAX_OPTIONS
    or dilations - {1}
    or others.get('precision') is not None
  ):
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
  """Splits the last axis of each array, the channels; yields group by group."""
  return zip(*(jnp.split(array, groups, 3) for array in arrays), strict=True)


def _takes_winograd(strides, dtype, kernel_shape, height):
  """Returns True if Winograd's way pays for an output of `height` rows."""
  width = kernel_shape[0]
  return (
    max(strides) == 1
    and min(kernel_shape[2:]) >= _LEAST_CHANNELS
    and dtype == jnp.float32  # lower precision does not bear its roundings
    and 1 < width <= _MAX_WIDTH
    and winograd.num_rows(height, width) > 1
  )


def _convolve_group(images, kernel, strides, padding):
  height = images.shape[1] + sum(padding[0]) - kernel.shape[0] + 1
  if _takes_winograd(strides, images.dtype, kernel.shape, height):
    return winograd.convolve(images, kernel, padding)
  return lax.conv_general_dilated(
    images, kernel, strides, padding, dimension_numbers=winograd.ORDER
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
  return lax.conv_general_dilated(
    gradient,
    rotated,
    (1, 1),
    around,
    lhs_dilation=strides,
    dimension_numbers=winograd.ORDER,
  )


def _kernel_gradient(kernel_shape, strides, padding, images, gradient):
  widths, height = kernel_shape[:2], gradient.shape[1]
  if max(strides) > 1:
    return _folded_gradient(widths, strides, padding, images, gradient)
  if _takes_winograd(strides, images.dtype, kernel_shape, height):
    return winograd.kernel_gradient(images, gradient, widths[0], padding)
  return winograd.direct_kernel_gradient(images, gradient, padding)


def _folded_gradient(widths, strides, padding, images, gradient):
  """Returns a kernel's gradient by a product of matrices for each image.

  Blocks of stride x stride pixels become channels, so that the convolution has
  no stride any more, and all that one output saw lies side by side in a row.
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
