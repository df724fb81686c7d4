"""The kernel of `fused` that pools; see `fused_lanes`.

A program goes down some rows of an image; what overlapping windows share stays
in registers. All sums and powers are float32.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from alexnet_jax.models import fused_lanes

NO_PLACE = 255  # in a window whose gradient the ReLU stops


def forward(x: jax.Array, bias, spec, interpret: bool):
  """Pooled values and the place of each one in its window.

  Args:
    x, bias: see `fused.lrn_max_pool`.
    spec: a `fused.Spec`.
    interpret: see `fused.lrn_max_pool`.

  Returns:
    (pooled [batch, rows, columns, channels], dtype of `x`; places, uint8 of
    the same shape: row * spec.window + column of the first of the largest
    values, or 255 where the ReLU lets no gradient through).
  """
  batch, height, width, channels = x.shape
  rows, columns = spec.pooled(height), spec.pooled(width)
  lanes = fused_lanes.make_lanes(x, rows, columns)
  pooled, places = lanes.launch(
    functools.partial(_forward_kernel, spec, lanes, height, bias is not None),
    (
      fused_lanes.packed_shape(batch * rows, columns, lanes),
      fused_lanes.packed_shape(batch * rows, columns, lanes, places=True),
    ),
    batch,
    'relu_norm_max_pool',
    interpret,
    fused_lanes.packed(x, lanes),
    *fused_lanes.bias_words(bias, lanes),
  )
  shape = (batch, rows, columns, channels)
  return (
    fused_lanes.unpacked(pooled, shape, x.dtype),
    fused_lanes.unpacked(places, shape, jnp.uint8),
  )


def _forward_kernel(spec, lanes, height, has_bias, x_ref, *refs):
  bias_refs, (pooled_ref, places_ref) = refs[:has_bias], refs[has_bias:]
  image, chunk, column, word = lanes.place()
  inside = column < lanes.columns
  bias = fused_lanes.load_bias(bias_refs, word, spec.half, lanes)
  start = chunk * lanes.steps

  def pixels(row):  # of the windows in one row of the image
    return [
      _pooled_values(
        fused_lanes.load(
          *(x_ref, image * height + row, column * spec.stride + j, word),
          *(spec.half, inside & (row < height), lanes),
        ),
        bias,
        spec,
        lanes,
      )
      for j in range(spec.window)
    ]

  shared = max(spec.window - spec.stride, 0)  # rows with the next window

  def step(number, above):
    row = start + number
    window = above + [
      pixels(row * spec.stride + i) for i in range(shared, spec.window)
    ]
    largest = [_largest(c, window, spec) for c in range(lanes.channels)]
    values, places = zip(*largest, strict=True)
    place = image * lanes.rows + row, column, word
    mask = inside & (row < lanes.rows)
    fused_lanes.store(pooled_ref, *place, values, mask, lanes)
    fused_lanes.store(places_ref, *place, places, mask, lanes)
    return window[spec.window - shared :]

  above = [pixels(start * spec.stride + i) for i in range(shared)]
  lax.fori_loop(0, lanes.steps, step, above)


def _pooled_values(values, bias, spec, lanes):
  """The values of one pixel that are compared, a list over channels."""
  values = fused_lanes.activations(values, bias, spec, lanes)
  own = fused_lanes.middle(values, 0, lanes)
  if spec.size:
    near = fused_lanes.middle(values, spec.half, lanes)
    own = [
      # Rounded as activations are: equals are equals only then.
      fused_lanes.rounded(
        value * fused_lanes.powers(bracket, spec.beta)[0], lanes
      )
      for value, bracket in zip(
        own, fused_lanes.brackets(near, spec), strict=True
      )
    ]
  if spec.relu == 'after':
    own = [fused_lanes.rectified(value) for value in own]
  return own


def _largest(channel, window, spec):
  """The largest value of a window and its place, the first one of equals."""
  best = window[0][0][channel]
  place = jnp.zeros(best.shape, jnp.int32)
  for i in range(spec.window):
    for j in range(spec.window):
      value = window[i][j][channel]
      larger = (value > best) | (value != value)  # not a number: stays so
      best = jnp.where(larger, value, best)
      place = jnp.where(larger, i * spec.window + j, place)
  if spec.relu == 'after':
    place = jnp.where(best > 0, place, NO_PLACE)
  return best, place
