"""train_step and eval_step: pure functions for one device.

`parallel` maps them over the devices; `mean`, `std` and `axis_name` are bound
with functools.partial before.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import optax

from alexnet_jax.evaluation import metrics
from alexnet_jax.training.state import leaf_name
from alexnet_jax.training.state import leaf_names
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


def augmented(batch) -> jax.Array:
  """The images of a training batch, mirrored and brightened as it says.

  Args:
    batch: {image: uint8 [batch, height, width, 3]} and where they are wanted
      flip: bool [batch], brightness: float32 [batch], in levels of 255.

  Returns:
    [batch, height, width, 3], uint8, or float32 within 0 to 255.
  """
  images = batch['image']
  if 'flip' in batch:
    images = mirror(images, batch['flip'])
  if 'brightness' in batch:
    shift = batch['brightness'][:, None, None, None]
    images = jnp.clip(images.astype(jnp.float32) + shift, 0.0, 255.0)
  return images


@dataclasses.dataclass(frozen=True)
class Objective:
  """What training minimises, and for which parameters.

  Attributes:
    label_smoothing: share of the target that all classes have alike.
    l1: factor of the sum of |w| over all kernels that joins the loss.
    l2: factor of the sum of w ** 2 over all kernels that joins the loss.
    frozen: names of parameters that do not train, such as conv1/kernel.
  """

  label_smoothing: float = 0.0
  l1: float = 0.0
  l2: float = 0.0
  frozen: frozenset[str] = frozenset()

  @property
  def is_plain(self) -> bool:
    """Whether it is the cross-entropy and nothing else."""
    return not (self.label_smoothing or self.l1 or self.l2)

  def penalty(self, params) -> jax.Array:
    """float32 []."""
    kernels = [w for n, w in leaf_names(params).items() if n.endswith('kernel')]
    absolute = sum(jnp.sum(jnp.abs(w)) for w in kernels) if self.l1 else 0.0
    squares = sum(jnp.sum(jnp.square(w)) for w in kernels) if self.l2 else 0.0
    return jnp.asarray(self.l1 * absolute + self.l2 * squares, jnp.float32)

  def value(self, logits, labels, params) -> jax.Array:
    """The mean over a batch, float32 []."""
    targets = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[1]), self.label_smoothing
    )
    losses = optax.softmax_cross_entropy(logits, targets)
    return losses.mean() + self.penalty(params)


PLAIN = Objective()  # the mean cross-entropy


def loss_and_grads(
  state: TrainState, batch, key, *, mean, std, objective: Objective = PLAIN
):
  """Objective and gradients of one device's batch.

  Args:
    state: see `state.TrainState`.
    batch: {image: uint8 [batch, height, width, 3], label: int32 [batch]} and
      what `augmented` uses.
    key: of the dropout.
    mean, std: see `normalize`.
    objective: is differentiated; frozen parameters get gradients of zero, and
      frozen batch norms keep and use their running statistics.

  Returns:
    (grads, (value, logits, batch_stats)).
  """
  images = augmented(batch)
  fixed_norms = tuple(
    name
    for name in state.batch_stats
    if all(f'{name}/{leaf}' in objective.frozen for leaf in state.params[name])
  )

  def loss_fn(params):
    params = _map_named(
      lambda name, w: lax.stop_gradient(w) if name in objective.frozen else w,
      params,
    )
    variables = {'params': params, 'batch_stats': state.batch_stats}
    logits, updated = state.apply_fn(
      variables,
      normalize(images, mean, std),
      train=True,
      fixed_norms=fixed_norms,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    if objective.is_plain:
      value = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch['label']
      ).mean()
    else:
      value = objective.value(logits, batch['label'], params)
    return value, (value, logits, updated.get('batch_stats', {}))

  return jax.grad(loss_fn, has_aux=True)(state.params)


def train_step(
  state: TrainState,
  batch,
  key,
  *,
  mean,
  std,
  axis_name: str,
  objective: Objective = PLAIN,
  ema_decay: float = 0.0,
):
  """One update from one global batch, of which this device has a part.

  Args:
    state: the state before; the same on every device.
    batch: this device's part, see `loss_and_grads`; also unreadable: bool
      [batch], counted, where there is a policy to skip such images.
    key: of the run; the step and the device are folded into it here, so there
      is no random state to save.
    mean, std: see `normalize`.
    axis_name: the mapped axis over the devices.
    objective: what is minimised.
    ema_decay: share of the averaged parameters that a step keeps; in update
      t + 1 at most (1 + t) / (10 + t), as in TensorFlow's moving averages. The
      statistics of batch norms are averages anyway, of the plain parameters.

  Returns:
    (state after, sums over the global batch); see `metrics.example_sums`. If
    the objective is more than the cross-entropy, its sum is there, too.
  """
  key = jax.random.fold_in(key, state.step)
  key = jax.random.fold_in(key, lax.axis_index(axis_name))
  grads, (value, logits, batch_stats) = loss_and_grads(
    state, batch, key, mean=mean, std=std, objective=objective
  )
  # The only reduction of gradients. Every device has as many examples as the
  # others, so the mean of the means is the mean over the global batch.
  grads, batch_stats = lax.pmean((grads, batch_stats), axis_name)
  state = _update(state, grads, objective.frozen, ema_decay)
  state = state.replace(batch_stats=batch_stats)
  sums = _sums(logits, batch)
  if not objective.is_plain:
    sums['objective'] = value * len(batch['label'])
  return state, lax.psum(sums, axis_name)


def _update(state, grads, frozen, ema_decay):
  """Applies the gradients to all parameters but the frozen ones."""
  # Of a frozen parameter the optimizer sees nothing: no decay gathers in its
  # velocity while it waits.
  seen = _map_named(
    lambda name, w: jnp.zeros_like(w) if name in frozen else w, state.params
  )
  updates, opt_state = state.tx.update(grads, state.opt_state, seen)
  params = _map_named(
    lambda name, w, update: w if name in frozen else w + update,
    state.params,
    updates,
  )
  # The average starts with the initial weights; it forgets them sooner while
  # there are few others.
  decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
  average = jax.tree.map(
    lambda old, new: decay * old + (1 - decay) * new,
    state.ema_params,
    params if state.ema_params else {},
  )
  return state.replace(
    step=state.step + 1, params=params, opt_state=opt_state, ema_params=average
  )


def _map_named(function, tree, *rest):
  """tree_map with the name of each leaf, as in `state.leaf_names`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: function(leaf_name(path), *leaves), tree, *rest
  )


def grad_step(
  state: TrainState,
  batch,
  key,
  *,
  mean,
  std,
  axis_name: str,
  objective: Objective = PLAIN,
):
  """The gradients that `train_step` would apply, for histograms."""
  grads, _ = loss_and_grads(
    state, batch, key, mean=mean, std=std, objective=objective
  )
  return lax.pmean(grads, axis_name)


def eval_step(
  state: TrainState, batch, *, mean, std, axis_name: str, top: int = 0
):
  """Sums over one global batch, of which this device has a part.

  Args:
    state: only read.
    batch: {image, label, unreadable} as in training and mask: bool [batch].
    mean, std, axis_name: as in `train_step`.
    top: also gives the `top` best classes of each example.

  Returns:
    Sums as of `train_step`, and confusion: int32 [num_classes, num_classes],
    see `metrics.confusion_matrix`. With `top` also examples: {classes: int32
    [global batch, top], best first, probabilities: float32, the same, loss:
    float32 [global batch]}.
  """
  logits = state.apply_fn(
    {'params': state.eval_params, 'batch_stats': state.batch_stats},
    normalize(batch['image'], mean, std),
    train=False,
  )
  sums = _sums(logits, batch)
  sums['confusion'] = metrics.confusion_matrix(
    logits, batch['label'], batch['mask']
  )
  sums = lax.psum(sums, axis_name)
  if top:
    best = metrics.best_classes(logits, batch['label'], top)
    sums['examples'] = lax.all_gather(best, axis_name, tiled=True)
  return sums


def _sums(logits, batch):
  """See `metrics.example_sums`; also counts what could not be decoded."""
  sums = metrics.example_sums(logits, batch['label'], batch.get('mask'))
  if 'unreadable' in batch:
    sums['unreadable'] = jnp.sum(batch['unreadable'], dtype=jnp.int32)
  return sums
