"""Augmentation of training images: crop, flip, brightness, PCA lighting.

The crop is cut on the host; flip, brightness and lighting are applied on the
device. The random numbers come from `order`, so they are functions of the seed
and the step.
"""

import dataclasses
import math
from typing import NamedTuple, TypedDict

import numpy as np

from alexnet_jax.data import images, order

_LONGEST_SIDE = 65_535  # pixels, of a JPEG


class Changes(TypedDict, total=False):
  """Random changes that the device applies to b images, where switched on.

  It computes (mirrored image + brightness + color - mean) * scale.
  """

  flip: np.ndarray  # bool [b]: images that are mirrored
  brightness: np.ndarray  # float32 [b], added to pixels, in levels of 255
  color: np.ndarray  # float32 [b, 3], added to pixels, in levels of 255
  scale: np.ndarray  # float32 [b], factor of pixels after the mean


class SquareWindow(NamedTuple):
  """A window of the center square of an image, in pixels of the square."""

  square_size: int
  top: int
  left: int
  size: int

  def rows_needed(self, height: int, width: int) -> int:
    """Returns how many rows of the image, from the top, the window needs."""
    whole, top, _, size = self
    return images.rows_of_crop(height, width, whole, top, size)

  def cut(self, image: np.ndarray, out: np.ndarray) -> None:
    """Writes the window into `out`, uint8 [size, size, channels]."""
    images.crop_of_square(image, self.square_size, self.top, self.left, out)


class ResizedBox(NamedTuple):
  """A random part of an image, resized; the fields are of the draws."""

  corner: np.ndarray  # see `images.random_resized_box`
  attempts: np.ndarray
  area: tuple[float, float]
  ratio: tuple[float, float]

  def rows_needed(self, height: int, width: int) -> int:
    top, _, rows, _ = images.random_resized_box(height, width, *self)
    return top + rows

  def cut(self, image: np.ndarray, out: np.ndarray) -> None:
    box = images.random_resized_box(*image.shape[:2], *self)
    images.resize_box(image, box, out)


@dataclasses.dataclass(frozen=True)
class Crop:
  """The part of an image that a network is trained on.

  Its kind is `random`: a window of the square of the loader's resize_size, the
  paper's; `center`: its center; or `random_resized`: a random part of the whole
  image, resized, with a smallest and a largest `area` and `ratio`.
  """

  size: int  # pixels
  kind: str = 'random'
  area: tuple[float, float] = (0.08, 1.0)  # shares of the image
  ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height

  @property
  def cuts_squares(self) -> bool:
    """True if every crop is a window of the center square, see `corners`."""
    return self.kind in ('random', 'center')

  def corners(self, draws: np.ndarray, resize_size: int) -> np.ndarray:
    """Returns (top, left) of windows in squares of `resize_size`, int64 [n, 2].

    The draws are `order.batch_draws` of n examples.
    """
    free = resize_size - self.size
    if self.kind == 'center':
      return np.full((len(draws), 2), free // 2)
    return (draws[:, :2] * (free + 1)).astype(np.int64)

  def windows(
    self, draws: np.ndarray, attempts: np.ndarray | None, resize_size: int
  ) -> list[SquareWindow] | list[ResizedBox]:
    """Returns what is cut out of each of n images.

    Random-resized crops have `attempts`, see `order.resized_crop_draws`.
    """
    if not self.cuts_squares:
      return [
        ResizedBox(corner, tries, self.area, self.ratio)
        for corner, tries in zip(draws, attempts, strict=True)
      ]
    return [
      SquareWindow(resize_size, top, left, self.size)
      for top, left in self.corners(draws, resize_size).tolist()
    ]

  def least_short_side(self, resize_size: int) -> int:
    """Returns the short side of an image that loses no pixel of any crop."""
    if self.cuts_squares:
      return resize_size
    share = self.area[0] / max(self.ratio[1], 1 / self.ratio[0])
    return min(_LONGEST_SIDE, math.ceil(self.size / math.sqrt(share)))


@dataclasses.dataclass(frozen=True)
class Lighting:
  """Random shifts of the colors along their principal components."""

  matrix: np.ndarray  # see `lighting_matrix`
  steps: int = 0  # batches that are shifted; 0: all
  scale: float = 1.0  # factor of pixels after the mean, while they are shifted

  def device_changes(
    self, step: int, global_batch_size: int, seed: int, part: slice
  ) -> Changes:
    """Returns `color` and, unless it is 1, `scale` of a part of a batch."""
    normal = order.color_draws(step, global_batch_size, seed)[part]
    shifted = not self.steps or step < self.steps
    # No matrix product: its roundings may depend on the number of rows, and so
    # on that of processes.
    shifts = (normal[:, None] * self.matrix).sum(-1)
    drawn = {'color': np.float32(shifts * shifted)}
    if self.scale != 1:
      scale = self.scale if shifted else 1.0
      drawn['scale'] = np.full(len(normal), scale, np.float32)
    return drawn


def lighting_matrix(
  covariance: np.ndarray, amount: float, unit: str
) -> np.ndarray:
  """Returns the matrix that turns three normal draws into a shift of RGB.

  Each draw goes along one principal component of the colors, amount times
  their variance (`eigenvalue`) or standard deviation (`deviation`) along it.
  Krizhevsky et al. 2012, section 4.1, print the eigenvalue, which is a shift
  only where pixels are shares of white; the source release multiplies by what
  it calls `stdevs`.

  Args:
    covariance: of RGB in levels of 255, float64 [3, 3].
    amount: standard deviation of the draws; 0.1 in the paper.
    unit: `eigenvalue` or `deviation`.

  Returns:
    float64 [3, 3]: shift = matrix @ draws, in levels of 255.
  """
  values, vectors = np.linalg.eigh(np.asarray(covariance) / 255**2)
  # A sign that no library may choose otherwise: the largest part is positive.
  largest = vectors[np.abs(vectors).argmax(0), range(3)]
  vectors = vectors * np.sign(largest)
  # Rounding may leave a variance of nothing just below 0.
  values = np.maximum(values, 0.0)
  spread = values if unit == 'eigenvalue' else np.sqrt(values)
  return 255 * amount * vectors * spread


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """All random changes of training images.

  A change that is applied on the device is drawn in `device_changes`; one of
  the pixels on the host is part of the crop.
  """

  crop: Crop
  random_flip: bool = True  # False never mirrors
  brightness: float = 0.0  # largest random shift, as a share of white
  lighting: Lighting | None = None
  mirrors_on_host: bool = False  # then the flip is not left to the device

  def device_changes(
    self, draws: np.ndarray, step: int, batch_size: int, seed: int, part: slice
  ) -> Changes:
    """Returns what the device does to a part of the global batch of a step.

    The draws are `order.batch_draws` of the part.
    """
    drawn = {}
    if self.random_flip:
      drawn['flip'] = draws[:, 2] < 0.5
    if self.brightness:
      shifts = order.brightness_draws(step, batch_size, seed)[part]
      drawn['brightness'] = shifts * np.float32(255 * self.brightness)
    if self.lighting is not None:
      drawn |= self.lighting.device_changes(step, batch_size, seed, part)
    return drawn
