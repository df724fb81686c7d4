"""How the colors of a data set vary, and shifts along that."""

import dataclasses

import numpy as np

from alexnet_jax.data import order

UNITS = ('eigenvalue', 'deviation')


def color_statistics(pixels: int, sums: np.ndarray, products: np.ndarray):
  """Mean and covariance of RGB over all pixels, from exact sums.

  Args:
    pixels: how many.
    sums: int64 [3], of each channel.
    products: int64 [3, 3], of each pair of channels.

  Returns:
    {pixels, sums, products, mean [3], covariance [3][3] (divided by the number
    of pixels)}. The covariance is computed in integers up to the division.
  """
  sums = [int(s) for s in sums]
  products = [[int(p) for p in row] for row in products]
  covariance = [
    # n * sum(xy) - sum(x) * sum(y), exact in Python's integers.
    [
      (pixels * products[i][j] - sums[i] * sums[j]) / pixels**2
      for j in range(3)
    ]
    for i in range(3)
  ]
  return {
    'pixels': pixels,
    'sums': sums,
    'products': products,
    'mean': [s / pixels for s in sums],
    'covariance': covariance,
  }


def shift_matrix(
  covariance: np.ndarray, amount: float, unit: str
) -> np.ndarray:
  """Turns three standard normal draws into a shift of RGB.

  Each draw goes along one principal component of the colors, amount times
  their variance (`eigenvalue`) or standard deviation (`deviation`) along it.
  Krizhevsky et al. 2012, section 4.1, print the eigenvalue, which is a shift
  only where pixels have no unit: here, as in what others made of it, they are
  shares of white. The source release multiplies by what it calls `stdevs`.

  Args:
    covariance: of RGB in levels of 255, float64 [3, 3].
    amount: standard deviation of the draws; 0.1 in the paper.
    unit: one of UNITS.

  Returns:
    float64 [3, 3], by which the draws are multiplied from the right side:
    shift = matrix @ draws, in levels of 255.
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
class Shift:
  """What happens to the colors of training images.

  Attributes:
    matrix: see `shift_matrix`.
    steps: batches that are shifted; 0: all.
    scale: what pixels are multiplied by after the mean, while they are shifted.
  """

  matrix: np.ndarray
  steps: int = 0
  scale: float = 1.0

  def draw(
    self, step: int, global_batch_size: int, seed: int, part: slice
  ) -> dict[str, np.ndarray]:
    """{color: float32 [b, 3], levels of 255; scale: float32 [b]}.

    They are of the `part` of batch `step`; without a scale there is none.
    """
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
