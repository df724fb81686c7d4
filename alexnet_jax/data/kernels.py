"""Compiled loops over pixels, because numpy and OpenCV are slow here.

numba compiles them at their first call (about a second, kept in its cache) and
runs them without the GIL. Importing numba takes a while too: import this module
where a kernel is called, not at the top.
"""

import contextlib

from llvmlite import ir
import numba
from numba.core import caching, cgutils, types
from numba.extending import intrinsic
import numpy as np


class _Cache(caching.FunctionCache):
  """numba's cache, which a full disk or a damaged file only switches off."""

  def load_overload(self, *signature):
    with contextlib.suppress(Exception):  # of pickle as well
      return super().load_overload(*signature)

  def save_overload(self, *compiled):
    with contextlib.suppress(Exception):
      super().save_overload(*compiled)


def _compiled(function):
  kernel = numba.njit(nogil=True)(function)
  with contextlib.suppress(RuntimeError):  # no folder for a cache
    kernel._cache = _Cache(function)  # as its enable_caching() does
  return kernel


@intrinsic
def _pointer(typing_context, address):
  """Returns the uint64 `address` as a pointer to uint8."""

  def generate(context, builder, signature, arguments):
    target = context.get_value_type(signature.return_type)
    return builder.inttoptr(arguments[0], target)

  return types.CPointer(types.uint8)(address), generate


@_compiled
def copy_windows(addresses, size, tops, lefts, out):
  """Cuts a window out of each of many squares, wherever they lie in memory.

  Args:
    addresses: uint64 [n], of the first byte of each square: uint8
      [size, size, channels], without gaps. The caller keeps the memory alive.
    size: width of the squares, in pixels.
    tops, lefts: int64 [n], corner of each window, with 0 <= corner and
      corner + width <= size: not checked here.
    out: uint8 [n, width, width, channels], overwritten.
  """
  width, channels = out.shape[1], out.shape[3]
  length = width * channels  # of a row
  for i in range(out.shape[0]):
    shape = (size, size * channels)
    square = numba.carray(_pointer(addresses[i]), shape, np.uint8)
    left = lefts[i] * channels
    for row in range(width):
      source = square[tops[i] + row, left : left + length]
      target = out[i, row].reshape(length)
      for j in range(length):
        target[j] = source[j]


@_compiled
def resample(image, out, first_row, row_scale, first_column, column_scale):
  """Resizes a window: averages over areas, or interpolates where it enlarges.

  A pixel is the same whatever window it is computed in. Along an axis whose
  scale is above 1 it is the mean over the area it covers (OpenCV's INTER_AREA),
  otherwise linear interpolation between the nearest pixels' centers
  (INTER_LINEAR). Sums are float32, rounded to the nearest.

  Args:
    image: uint8 [height, width, 3], contiguous.
    out: uint8 [rows, columns, 3], overwritten.
    first_row, first_column: int, corner of `out` in the whole resized image.
    row_scale, column_scale: float, pixels of the original in one of the resized
      image.
  """
  rows, columns = out.shape[0], out.shape[1]
  tops, row_weights = _taps(first_row, rows, row_scale, image.shape[0])
  starts, weights = _taps(first_column, columns, column_scale, image.shape[1])
  taps = weights.shape[1]
  left = starts[0]
  right = min(image.shape[1], starts[columns - 1] + taps)
  width = (right - left) * 3
  pairs = (columns + 1) // 2
  places = np.zeros((pairs, 2), np.int64)  # in the line of sums
  pair_weights = np.zeros((pairs, taps, 2, 4), np.float32)
  for j in range(columns):
    places[j // 2, j % 2] = (starts[j] - left) * 3
    for k in range(taps):
      pair_weights[j // 2, k, j % 2] = weights[j, k]
  # One row of the sums over rows. Taps of weight 0 may lie beyond its end.
  line = np.zeros(width + taps * 3 + 4, np.float32)
  pixels = np.empty(pairs * 6 + 2, np.uint8)
  for i in range(rows):
    top, row_weight = tops[i], row_weights[i]
    # Three taps are enough for scales up to 2, the usual ones.
    first, second, third = row_weight[0], row_weight[1], row_weight[2]
    above = image[top, left:right].reshape(width)
    middle = image[min(top + 1, image.shape[0] - 1), left:right].reshape(width)
    if third == 0:
      for x in range(width):
        line[x] = first * above[x] + second * middle[x]
    else:
      below = image[top + 2, left:right].reshape(width)
      for x in range(width):
        line[x] = first * above[x] + second * middle[x] + third * below[x]
    for k in range(3, row_weights.shape[1]):
      if row_weight[k] != 0:
        source = image[top + k, left:right].reshape(width)
        for x in range(width):
          line[x] += row_weight[k] * source[x]
    for j in range(pairs):
      _write_two_pixels(line, places, pair_weights, j, pixels)
    target = out[i].reshape(columns * 3)
    for x in range(columns * 3):
      target[x] = pixels[x]


@intrinsic
def _write_two_pixels(typing_context, line, places, weights, pair, pixels):
  """Writes two neighboring pixels of a row, as vectors of eight floats.

  LLVM finds no vectors in the loop over three channels by itself; with them the
  whole of `resample` takes half as long. Each half holds the channels of a
  pixel and one float of the next pixel, which is dropped.

  Args:
    line: float32 [n], the row before it is resized.
    places: int64 [pairs, 2], where in it the first tap of each pixel is.
    weights: float32 [pairs, taps, 2, 4], at least three taps.
    pair: int64, which pair.
    pixels: uint8, the row; 8 bytes from 6 * pair on are written, of which 2 are
      of no meaning.
  """
  float4, float8 = (ir.VectorType(ir.FloatType(), n) for n in (4, 8))
  int8 = ir.VectorType(ir.IntType(8), 8)

  def generate(context, builder, signature, arguments):
    line, places, weights, pixels = (
      context.make_array(signature.args[i])(context, builder, arguments[i])
      for i in (0, 1, 2, 4)
    )
    pair = arguments[3]
    taps = cgutils.unpack_tuple(builder, weights.shape)[1]

    def integer(value):
      return ir.Constant(pair.type, value)

    def lanes(*values):
      return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), values)

    def load(array, index, kind):
      place = builder.gep(array.data, [index])
      return builder.load(builder.bitcast(place, kind.as_pointer()), align=4)

    def weighted(tap):
      halves = (
        load(line, builder.add(place, builder.mul(tap, integer(3))), float4)
        for place in both
      )
      index = builder.add(builder.mul(pair, taps), tap)
      factors = load(weights, builder.mul(index, integer(8)), float8)
      return builder.fmul(
        builder.shuffle_vector(*halves, lanes(*range(8))), factors
      )

    start = builder.mul(pair, integer(2))
    both = [
      builder.load(builder.gep(places.data, [builder.add(start, integer(i))]))
      for i in range(2)
    ]
    total = cgutils.alloca_once(builder, float8)
    first, second, third = (weighted(integer(tap)) for tap in range(3))
    builder.store(builder.fadd(builder.fadd(first, second), third), total)
    with cgutils.for_range(builder, taps, start=integer(3)) as loop:
      summed = builder.fadd(builder.load(total), weighted(loop.index))
      builder.store(summed, total)
    half = ir.Constant(float8, [0.5] * 8)
    rounded = builder.fptosi(
      builder.fadd(builder.load(total), half), ir.VectorType(ir.IntType(32), 8)
    )
    levels = builder.trunc(rounded, int8)
    six = builder.shuffle_vector(levels, levels, lanes(0, 1, 2, 4, 5, 6, 7, 7))
    place = builder.gep(pixels.data, [builder.mul(pair, integer(6))])
    builder.store(six, builder.bitcast(place, int8.as_pointer()), align=1)
    return context.get_dummy_value()

  return types.void(line, places, weights, pair, pixels), generate


@_compiled
def _taps(first, count, scale, size):
  """Returns the pixels behind each resized pixel of one axis, with weights.

  Returns:
    (start int64 [count], weights float32 [count, taps]), at least three taps,
    whose weights sum up to 1.
  """
  starts = np.empty(count, np.int64)
  taps = max(3, int(np.ceil(scale)) + 1)
  weights = np.zeros((count, taps), np.float32)
  for i in range(count):
    if scale > 1:
      begin = (first + i) * scale
      end = min(begin + scale, float(size))
      start = int(begin)
      for k in range(taps):
        covered = min(end, start + k + 1.0) - max(begin, float(start + k))
        if covered > 0 and start + k < size:
          weights[i, k] = covered / (end - begin)
    else:
      center = min(max((first + i + 0.5) * scale - 0.5, 0.0), size - 1.0)
      start = int(center)
      weights[i, 0] = 1 - (center - start)
      if start + 1 < size:
        weights[i, 1] = center - start
    starts[i] = start
  return starts, weights


@_compiled
def add_color_sums(image, sums, products):
  """Adds the sums of an image's colors, exactly.

  Args:
    image: uint8 [height, width, 3].
    sums: int64 [3], added to: the sum over the pixels of each channel.
    products: int64 [3, 3], added to: of each pair of channels.
  """
  width = image.shape[1]
  channels = np.empty((3, width), np.int32)  # of a row: vectors, not strides
  for row in range(image.shape[0]):
    for column in range(width):
      channels[0, column] = image[row, column, 0]
      channels[1, column] = image[row, column, 1]
      channels[2, column] = image[row, column, 2]
    for i in range(3):
      total = 0
      for column in range(width):
        total += channels[i, column]
      sums[i] += total
      for j in range(i, 3):
        total = 0
        for column in range(width):
          total += channels[i, column] * channels[j, column]
        products[i, j] += total
  for i in range(3):
    for j in range(i):
      products[i, j] = products[j, i]
