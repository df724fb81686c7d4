"""Pixels on the device: augmentation, normalization, ten crops."""

from collections.abc import Callable, Sequence
import itertools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def normalize(
  images: jax.Array, mean: jax.typing.ArrayLike, std: float | Sequence[float]
) -> jax.Array:
  """Returns (images - mean) / std in float32; images: [batch, h, w, 3].

  The mean is [channels] or as one image, std a number, or one for each channel.
  """
  mean, std = (
    jnp.asarray(value, jnp.float32)[(None,) * (images.ndim - np.ndim(value))]
    for value in (mean, std)
  )
  return (images.astype(jnp.float32) - mean) / std


def augment(batch) -> jax.Array:
  """Returns the images of a training batch, flipped and shifted in color.

  The batch has image: uint8 [batch, height, width, channels] and, where they
  are wanted, flip: bool [batch], brightness: float32 [batch] and color: float32
  [batch, 3], both in levels of 255. The result is uint8, or float32 within 0 to
  255 except for what `color` adds, as in the paper. Flipping is part of the
  pass that reads the images anyway; on the host it would cost more.
  """
  images = batch['image']
  if 'flip' in batch:
    flip = batch['flip'][:, None, None, None]
    images = jnp.where(flip, images[:, :, ::-1], images)
  if 'brightness' in batch:
    shift = batch['brightness'][:, None, None, None]
    images = jnp.clip(images.astype(jnp.float32) + shift, 0.0, 255.0)
  if 'color' in batch:
    images = images.astype(jnp.float32) + batch['color'][:, None, None]
  return images


def crop_logits(
  logits_of: Callable[[jax.Array], jax.Array], images: jax.Array, crop_size: int
) -> jax.Array:
  """Returns logits of images, or of the mean softmax over their ten crops.

  The crops are the four corners and the center (Krizhevsky et al. 2012, section
  4.1), and the same mirrored, one after the other: the memory is that of one.
  `logits_of` makes float32 [batch, classes] of them; the images are uint8
  [batch, size, size, channels]. With a `crop_size` of 0 they are the crops.
  """
  if not crop_size:
    return logits_of(images)

  def add(total, crop):
    mirrored, top, left = crop
    shape = (len(images), crop_size, crop_size, images.shape[3])
    pixels = lax.dynamic_slice(images, (0, top, left, 0), shape)
    pixels = jnp.where(mirrored > 0, pixels[:, :, ::-1], pixels)
    log_probs = jax.nn.log_softmax(logits_of(pixels))
    return jnp.logaddexp(total, log_probs), None

  last = images.shape[1] - crop_size
  corners = *itertools.product((0, last), repeat=2), (last // 2, last // 2)
  crops = jnp.array([(m, *corner) for m in (0, 1) for corner in corners])
  first, _ = add(-jnp.inf, crops[0])
  total, _ = lax.scan(add, first, crops[1:])
  return total - jnp.log(len(crops))
