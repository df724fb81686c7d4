"""train_step and eval_step: pure functions for one device.

`parallel` maps them over the devices; `mean`, `std` and `axis_name` are bound
with functools.partial before.
"""

import jax
from jax import lax
import jax.numpy as jnp
import optax

from alexnet_jax.evaluation import metrics
from alexnet_jax.training.state import TrainState


def normalize(
  images: jax.Array, mean: jax.typing.ArrayLike, std: float
) -> jax.Array:
  """(images - mean) / std in float32.

  Args:
    images: uint8 [batch, height, width, 3].
    mean: anything that broadcasts to one image: [3] or [height, width, 3].
    std: one number for all pixels.
  """
  mean = jnp.asarray(mean, jnp.float32)
  mean = mean.reshape((1,) * (images.ndim - mean.ndim) + mean.shape)
  return (images.astype(jnp.float32) - mean) / std


def mirror(images: jax.Array, flip: jax.Array) -> jax.Array:
  """Mirrors the images [batch, height, width, 3] whose `flip` [batch] is set.

  On the device this is part of the pass that reads the images anyway; on the
  host it would cost more than reading and cropping them.
  """
  return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def loss_and_grads(state: TrainState, batch, key, *, mean, std):
  """Loss and gradients of one device's batch.

  Args:
    state: see `state.TrainState`.
    batch: {image: uint8 [batch, height, width, 3], label: int32 [batch]} and
      where images are mirrored at random flip: bool [batch].
    key: of the dropout.
    mean, std: see `normalize`.

  Returns:
    (grads, (logits, batch_stats)); the loss is the mean cross-entropy.
  """

  images = batch['image']
  if 'flip' in batch:
    images = mirror(images, batch['flip'])

  def loss_fn(params):
    variables = {'params': params, 'batch_stats': state.batch_stats}
    logits, updated = state.apply_fn(
      variables,
      normalize(images, mean, std),
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    ).mean()
    return loss, (logits, updated.get('batch_stats', {}))

  return jax.grad(loss_fn, has_aux=True)(state.params)


def train_step(state: TrainState, batch, key, *, mean, std, axis_name: str):
  """One update from one global batch, of which this device has a part.

  Args:
    state: the state before; the same on every device.
    batch: this device's part, see `loss_and_grads`; also unreadable: bool
      [batch], counted, where there is a policy to skip such images.
    key: of the run; the step and the device are folded into it here, so there
      is no random state to save.
    mean, std: see `normalize`.
    axis_name: the mapped axis over the devices.

  Returns:
    (state after, sums over the global batch); see `metrics.example_sums`.
  """
  key = jax.random.fold_in(key, state.step)
  key = jax.random.fold_in(key, lax.axis_index(axis_name))
  grads, (logits, batch_stats) = loss_and_grads(
    state, batch, key, mean=mean, std=std
  )
  # The only reduction of gradients. Every device has as many examples as the
  # others, so the mean of the means is the mean over the global batch.
  grads, batch_stats = lax.pmean((grads, batch_stats), axis_name)
  state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
  sums = _sums(logits, batch)
  return state, lax.psum(sums, axis_name)


def grad_step(state: TrainState, batch, key, *, mean, std, axis_name: str):
  """The gradients that `train_step` would apply, for histograms."""
  grads, _ = loss_and_grads(state, batch, key, mean=mean, std=std)
  return lax.pmean(grads, axis_name)


def eval_step(state: TrainState, batch, *, mean, std, axis_name: str):
  """Sums over one global batch, of which this device has a part.

  Args:
    state: only read.
    batch: {image, label, unreadable} as in training and mask: bool [batch].
    mean, std, axis_name: as in `train_step`.
  """
  logits = state.apply_fn(
    {'params': state.params, 'batch_stats': state.batch_stats},
    normalize(batch['image'], mean, std),
    train=False,
  )
  return lax.psum(_sums(logits, batch), axis_name)


def _sums(logits, batch):
  """See `metrics.example_sums`; also counts what could not be decoded."""
  sums = metrics.example_sums(logits, batch['label'], batch.get('mask'))
  if 'unreadable' in batch:
    sums['unreadable'] = jnp.sum(batch['unreadable'], dtype=jnp.int32)
  return sums
