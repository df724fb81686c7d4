"""Resize and crop: plain functions of uint8 arrays."""

from collections.abc import Sequence
import math

import numpy as np
import PIL.Image


def center_square(
  image: np.ndarray, size: int, channels: int = 3
) -> np.ndarray:
  """Returns the center of an image whose short side becomes `size` pixels.

  It is uint8 [size, size, channels], gray if of one. This is the paper's
  preparation (Krizhevsky et al. 2012, section 2). Shrinking averages over
  areas, enlarging interpolates linearly.
  """
  out = np.empty((size, size, channels), np.uint8)
  crop_of_square(image, size, 0, 0, out)
  return out


def crop_of_square(
  image: np.ndarray, size: int, top: int, left: int, out: np.ndarray
) -> None:
  """Writes a window of `center_square(image, size)` into `out`.

  Equal to cutting it out of the whole square, but computes no more than it.

  Args:
    image: uint8 [height, width, 3].
    size: width of the square, in pixels.
    top, left: corner of the window in the square.
    out: uint8 [rows, columns, 3], overwritten; or [rows, columns, 1], which
      gets the window in gray.
  """
  height, width = image.shape[:2]
  full_height, full_width = resized_shape(height, width, size)
  top += (full_height - size) // 2
  left += (full_width - size) // 2
  if (full_height, full_width) == (height, width):
    _write(image[top : top + out.shape[0], left : left + out.shape[1]], out)
    return
  _resample(image, out, top, height / full_height, left, width / full_width)


def rows_of_crop(
  height: int, width: int, size: int, top: int, crop_size: int
) -> int:
  """Returns how many rows of an image, from the top, `crop_of_square` reads.

  The crop has `crop_size` rows, from `top` on, of the square of `size` pixels.
  """
  full_height, _ = resized_shape(height, width, size)
  bottom = (full_height - size) // 2 + top + crop_size
  # Interpolation reaches into the next row.
  return min(height, math.ceil(bottom * height / full_height) + 1)


def resize_short_side(image: np.ndarray, size: int) -> np.ndarray:
  """Returns the whole image with its short side `size`, uint8 [h, w, 3]."""
  height, width = image.shape[:2]
  rows, columns = resized_shape(height, width, size)
  out = np.empty((rows, columns, 3), np.uint8)
  _resample(image, out, 0, height / rows, 0, width / columns)
  return out


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
  """Returns (height, width) of an image whose short side becomes `size`."""
  scale = size / min(height, width)
  return max(size, round(height * scale)), max(size, round(width * scale))


def resize_box(
  image: np.ndarray, box: tuple[int, int, int, int], out: np.ndarray
) -> None:
  """Resizes image[top : top + height, left : left + width] into `out`.

  Args:
    image: uint8 [height, width, 3].
    box: (top, left, height, width) in pixels.
    out: uint8 [rows, columns, 3 or 1 (gray)], overwritten.
  """
  top, left, height, width = box
  window = image[top : top + height, left : left + width]
  _resample(window, out, 0, height / out.shape[0], 0, width / out.shape[1])


def _resample(image, out, *window):
  from alexnet_jax.data import kernels  # slow to import, and not always needed

  color = out
  if out.shape[2] == 1:
    color = np.empty((*out.shape[:2], 3), np.uint8)
  kernels.resample(np.ascontiguousarray(image), color, *window)
  if color is not out:
    _write(color, out)


def _write(image, out):
  """Copies RGB, or writes its luma where `out` has one channel."""
  if out.shape[2] == 1:
    # ITU-R 601-2 in integers; no slower than a compiled loop.
    image = np.asarray(PIL.Image.fromarray(image).convert('L'))[..., None]
  out[...] = image


def as_rgb(image: np.ndarray) -> np.ndarray:
  """Returns an image of one or three channels with three; gray is repeated."""
  return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def random_resized_box(
  height: int,
  width: int,
  corner: Sequence[float],
  attempts: Sequence[Sequence[float]],
  area: tuple[float, float],
  ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
  """Returns the box of a random-resized crop (Szegedy et al. 2014, section 6).

  The first attempt whose box fits is taken, as in torchvision; if none does,
  the largest center box within the ratios.

  Args:
    height, width: of the image, in pixels.
    corner: two draws in [0, 1): of the row and the column.
    attempts: pairs of draws in [0, 1): of the area and of the logarithm of the
      aspect ratio.
    area: smallest and largest share of the image's area.
    ratio: smallest and largest width / height.

  Returns:
    (top, left, height, width), inside the image.
  """
  low, high = math.log(ratio[0]), math.log(ratio[1])
  for area_draw, ratio_draw in attempts:
    target = height * width * (area[0] + (area[1] - area[0]) * area_draw)
    aspect = math.exp(low + (high - low) * ratio_draw)
    rows = round(math.sqrt(target / aspect))
    columns = round(math.sqrt(target * aspect))
    if 0 < rows <= height and 0 < columns <= width:
      top = int(corner[0] * (height - rows + 1))
      left = int(corner[1] * (width - columns + 1))
      return top, left, rows, columns
  rows = min(height, max(1, round(width / ratio[0])))
  columns = min(width, max(1, round(height * ratio[1])))
  return (height - rows) // 2, (width - columns) // 2, rows, columns


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
  """Returns the central [size, size, ...] of an array [height, width, ...]."""
  top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
  return image[top : top + size, left : left + size]
