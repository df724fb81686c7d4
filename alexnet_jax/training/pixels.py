"""What the device does to the pixels of a batch before the network."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalize(
  images: jax.Array,
  mean: jax.typing.ArrayLike,
  std: float | Sequence[float],
) -> jax.Array:
  """(images - mean) / std in float32.

  Args:
    images: uint8 [batch, height, width, 3].
    mean: anything that broadcasts to one image: [3] or [height, width, 3].
    std: one number for all pixels, or one for each channel.
  """
  mean = jnp.asarray(mean, jnp.float32)
  mean = mean.reshape((1,) * (images.ndim - mean.ndim) + mean.shape)
  std = np.asarray(std, np.float32)
  return (images.astype(jnp.float32) - mean) / std.reshape(
    (1,) * (images.ndim - std.ndim) + std.shape
  )


def mirror(images: jax.Array, flip: jax.Array) -> jax.Array:
  """Mirrors the images [batch, height, width, 3] whose `flip` [batch] is set.

  On the device this is part of the pass that reads the images anyway; on the
  host it would cost more than reading and cropping them.
  """
  return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def augmented(batch) -> jax.Array:
  """The images of a training batch, mirrored and colored as it says.

  Args:
    batch: {image: uint8 [batch, height, width, 3]} and where they are wanted
      flip: bool [batch], brightness: float32 [batch] and color: float32
      [batch, 3], both in levels of 255.

  Returns:
    [batch, height, width, 3], uint8, or float32: within 0 to 255 but for what
    `color` adds, as in the paper.
  """
  images = batch['image']
  if 'flip' in batch:
    images = mirror(images, batch['flip'])
  if 'brightness' in batch:
    shift = batch['brightness'][:, None, None, None]
    images = jnp.clip(images.astype(jnp.float32) + shift, 0.0, 255.0)
  if 'color' in batch:
    images = images.astype(jnp.float32) + batch['color'][:, None, None]
  return images


def training_inputs(
  batch, mean: jax.typing.ArrayLike, std: float | Sequence[float]
) -> jax.Array:
  """What the network reads of a training batch.

  Args:
    batch: see `augmented`; also scale: float32 [batch], by which the images
      are multiplied after the mean.
    mean, std: see `normalize`.

  Returns:
    float32 [batch, height, width, 3].
  """
  images = normalize(augmented(batch), mean, std)
  if 'scale' in batch:
    images *= batch['scale'][:, None, None, None]
  return images
