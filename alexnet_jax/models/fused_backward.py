"""The kernel of the gradient of `fused`; see `fused_lanes`.

A program goes down some rows of cells of an image; the windows that reach the
next row, too, stay in registers. All sums and powers are float32.
"""

import functools

import jax
from jax import lax
from jax.experimental.pallas import triton
import jax.numpy as jnp

from alexnet_jax.models import fused_lanes


def backward(x, bias, places, gradient: jax.Array, spec, interpret: bool):
  """The gradients with respect to `x` and `bias`.

  Args:
    x: that of `forward`; no examples of it if there is no normalization.
    bias: that of `forward`.
    places: of `forward`.
    gradient: with respect to the pooled values, of their shape and dtype.
    spec, interpret: as there.

  Returns:
    (that of x, that of the bias or None), in their dtypes.
  """
  _, height, width, channels = x.shape
  batch, rows, columns, _ = places.shape
  # A cell is stride x stride pixels: a window starts in its first one.
  cells = [-(-n // spec.stride) for n in (height, width)]
  lanes = fused_lanes.make_lanes(x, *cells)
  outputs = [fused_lanes.packed_shape(batch * height, width, lanes)]
  if bias is not None:
    outputs.append(
      jax.ShapeDtypeStruct(
        (batch * lanes.chunks, cells[1] * channels), jnp.float32
      )
    )
  results = lanes.launch(
    functools.partial(
      *(_backward_kernel, spec, lanes, (height, width, rows, columns)),
      bias is not None,
    ),
    outputs,
    batch,
    'relu_norm_max_pool_gradient',
    interpret,
    fused_lanes.packed(gradient, lanes),
    fused_lanes.packed(places, lanes),
    *((fused_lanes.packed(x, lanes),) if spec.size else ()),
    *(fused_lanes.bias_words(bias, lanes) if spec.size else ()),
  )
  shape = (batch, height, width, channels)
  x_gradient = fused_lanes.unpacked(results[0], shape, x.dtype)
  if bias is None:
    return x_gradient, None
  bias_gradient = results[1].reshape(-1, channels).sum(0)
  return x_gradient, bias_gradient.astype(bias.dtype)


def _backward_kernel(spec, lanes, sizes, has_bias, *refs):
  height, width, rows, columns = sizes
  gradient_ref, places_ref, *refs = refs
  x_refs, refs = refs[: spec.size > 0], refs[spec.size > 0 :]
  outputs = refs[len(refs) - 1 - has_bias :]
  image, chunk, cell, word = lanes.place()
  inside = cell < lanes.columns
  bias = fused_lanes.load_bias(
    refs[: -len(outputs)], word, 2 * spec.half, lanes
  )
  start = chunk * lanes.steps
  back = (spec.window - 1) // spec.stride  # windows before a cell that reach it

  def windows(row):  # those of one row that reach the cells
    found = []
    for j in range(back + 1):
      column = cell - j
      place = image * rows + row, column, word, spec.half
      mask = inside & (column >= 0) & (column < columns)
      mask = mask & (row >= 0) & (row < rows)
      found.append(
        tuple(
          fused_lanes.load(ref, *place, mask, lanes)
          for ref in (gradient_ref, places_ref)
        )
      )
    return found

  def step(number, carry):
    before, sums = carry
    row = start + number
    reached = [windows(row), *before]
    for i in range(spec.stride):
      for j in range(spec.stride):
        pixel = row * spec.stride + i, cell * spec.stride + j
        mask = inside & (pixel[0] < height) & (pixel[1] < width)
        place = image * height + pixel[0], pixel[1], word
        gradients = _chosen(reached, i, j, spec)
        if spec.size:
          values = fused_lanes.load(
            x_refs[0], *place, 2 * spec.half, mask, lanes
          )
          values = fused_lanes.activations(values, bias, spec, lanes)
          gradients = _through_norm(values, gradients, spec, lanes)
        fused_lanes.store(outputs[0], *place, gradients, mask, lanes)
        sums = [a + b for a, b in zip(sums, gradients, strict=False)]
    return reached[:back], sums

  before = [windows(start - 1 - i) for i in range(back)]
  zero = jnp.zeros(word.shape, jnp.float32)
  sums = [zero] * (lanes.channels if has_bias else 0)
  _, sums = lax.fori_loop(0, lanes.steps, step, (before, sums))
  for c, total in enumerate(sums):
    channel = word * lanes.pack + c
    channels = lanes.words * lanes.pack
    triton.store(
      outputs[1].at[image * lanes.chunks + chunk, cell * channels + channel],
      total,
      mask=inside & (channel < channels),
    )


def _chosen(reached, i, j, spec):
  """Sums of the gradients of those windows that chose the pixel (i, j) of a
  cell, a list over channels.
  """
  totals = [jnp.zeros(x.shape, jnp.float32) for x in reached[0][0][0]]
  for row in range(i, spec.window, spec.stride):
    for column in range(j, spec.window, spec.stride):
      gradients, places = reached[row // spec.stride][column // spec.stride]
      totals = [
        total + jnp.where(place == row * spec.window + column, gradient, 0.0)
        for total, gradient, place in zip(
          totals, gradients, places, strict=True
        )
      ]
  return totals


def _through_norm(values, gradients, spec, lanes):
  """With d the bracket and g the gradient, the derivative of the sum over g b:

  dx[c] = g[c] d[c]^-beta
          - 2 beta scale x[c] sum of g[j] x[j] d[j]^(-beta - 1), j around c.
  """
  values = fused_lanes.middle(values, 2 * spec.half, lanes)
  near = values[spec.half : len(values) - spec.half]
  gradients = fused_lanes.middle(gradients, spec.half, lanes)
  powers = [
    fused_lanes.powers(bracket, spec.beta)
    for bracket in fused_lanes.brackets(values, spec)
  ]
  terms = [
    gradient * value * higher
    for gradient, value, (_, higher) in zip(
      gradients, near, powers, strict=True
    )
  ]
  results = []
  for c in range(lanes.channels):
    here = c + spec.half
    through_others = sum(terms[c : c + spec.size])
    result = gradients[here] * powers[here][0] - (
      2 * spec.beta * spec.scale
    ) * (near[here] * through_others)
    if spec.relu == 'before':
      result = jnp.where(near[here] > 0, result, 0.0)
    results.append(result)
  return results
