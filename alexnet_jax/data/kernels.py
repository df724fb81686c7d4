"""Compiled loops over pixels, because numpy and OpenCV are slow here.

numba compiles them at their first call (about a second, kept in its cache) and
runs them without the GIL. Importing numba takes a while too: import this module
where a kernel is called, not at the top.
"""

import contextlib

import numba
from numba.core import caching
from numba.core import types
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
      [size, size, 3], without gaps. The caller keeps the memory alive.
    size: width of the squares, in pixels.
    tops, lefts: int64 [n], corner of each window, with 0 <= corner and
      corner + width <= size: not checked here.
    out: uint8 [n, width, width, 3], overwritten.
  """
  width = out.shape[1]
  for i in range(out.shape[0]):
    square = numba.carray(_pointer(addresses[i]), (size, size * 3), np.uint8)
    left = lefts[i] * 3
    for row in range(width):
      source = square[tops[i] + row, left : left + width * 3]
      target = out[i, row].reshape(width * 3)
      for j in range(width * 3):
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
  # One row of the sums over rows. Taps of weight 0 may lie beyond its end.
  line = np.zeros(width + taps * 3, np.float32)
  for i in range(rows):
    top, row_weight = tops[i], row_weights[i]
    above = image[top, left:right].reshape(width)
    if row_weight[1] == 0:
      for x in range(width):
        line[x] = row_weight[0] * above[x]
    else:
      below = image[top + 1, left:right].reshape(width)
      for x in range(width):
        line[x] = row_weight[0] * above[x] + row_weight[1] * below[x]
    for k in range(2, row_weights.shape[1]):
      if row_weight[k] != 0:
        source = image[top + k, left:right].reshape(width)
        for x in range(width):
          line[x] += row_weight[k] * source[x]
    target = out[i].reshape(columns * 3)
    for j in range(columns):
      x = (starts[j] - left) * 3
      # Three taps are enough for scales up to 2, the usual ones.
      first, second, third = weights[j, 0], weights[j, 1], weights[j, 2]
      for channel in range(3):
        total = first * line[x] + second * line[x + 3] + third * line[x + 6]
        for k in range(3, taps):
          total += weights[j, k] * line[x + 3 * k]
        target[3 * j + channel] = np.uint8(total + np.float32(0.5))
        x += 1


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
  for row in range(image.shape[0]):
    r = g = b = rr = rg = rb = gg = gb = bb = np.int64(0)
    for column in range(image.shape[1]):
      red = np.int64(image[row, column, 0])
      green = np.int64(image[row, column, 1])
      blue = np.int64(image[row, column, 2])
      r += red
      g += green
      b += blue
      rr += red * red
      rg += red * green
      rb += red * blue
      gg += green * green
      gb += green * blue
      bb += blue * blue
    sums[0] += r
    sums[1] += g
    sums[2] += b
    products[0, 0] += rr
    products[0, 1] += rg
    products[1, 0] += rg
    products[0, 2] += rb
    products[2, 0] += rb
    products[1, 1] += gg
    products[1, 2] += gb
    products[2, 1] += gb
    products[2, 2] += bb
