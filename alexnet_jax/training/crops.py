"""Ten crops of a square: corners and center, each as it is and mirrored."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

NUM_CROPS = 10


def places(square_size: int, crop_size: int) -> np.ndarray:
  """(top, left, mirrored) of the ten crops, int32 [10, 3], in pixels.

  The four corners and the center (Krizhevsky et al. 2012, section 4.1), then
  the same mirrored.
  """
  free = square_size - crop_size
  corners = [(0, 0), (0, free), (free, 0), (free, free), (free // 2, free // 2)]
  return np.array(
    [(*corner, mirrored) for mirrored in (0, 1) for corner in corners], np.int32
  )


def logits(
  logits_of: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  crop_size: int,
) -> jax.Array:
  """Logits of images, or of the mean of the softmax over their ten crops.

  The crops are computed one after the other: the memory is that of one.

  Args:
    logits_of: of crops [batch, crop_size, crop_size, 3].
    images: uint8 [batch, size, size, 3].
    crop_size: of ten crops, in pixels; 0: the images are the crops.

  Returns:
    float32 [batch, classes]; of ten crops the logarithm of the mean.
  """
  if not crop_size:
    return logits_of(images)

  def add(total, place):
    start = (0, place[0], place[1], 0)
    shape = (len(images), crop_size, crop_size, 3)
    crop = lax.dynamic_slice(images, start, shape)
    crop = jnp.where(place[2] > 0, crop[:, :, ::-1], crop)
    said = jax.nn.log_softmax(logits_of(crop))
    return jnp.logaddexp(total, said), None

  table = jnp.asarray(places(images.shape[1], crop_size))
  first, _ = add(-jnp.inf, table[0])
  total, _ = lax.scan(add, first, table[1:])
  return total - jnp.log(NUM_CROPS)
