"""train_step and eval_step: pure functions for one device.

`parallel` maps them over the devices; `mean`, `std` and `axis_name` are bound
with functools.partial before.
"""

import jax
from jax import lax
import jax.numpy as jnp

from alexnet_jax.training import accumulation
from alexnet_jax.training import crops
from alexnet_jax.training import metrics
from alexnet_jax.training.objective import Objective
from alexnet_jax.training.objective import PLAIN
from alexnet_jax.training.pixels import normalize
from alexnet_jax.training.pixels import training_inputs
from alexnet_jax.training.state import leaf_name
from alexnet_jax.training.state import TrainState

# What other generators draw depends on how many keys they draw from at a time,
# and so on the number of devices.
KEY_IMPL = 'threefry2x32'


def example_keys(
  key: jax.Array, step: jax.Array, axis_name: str, count: int
) -> jax.Array:
  """The keys of this device's examples in one step.

  That of an example depends on the key of the run, the step and the example's
  place in the global batch: neither on the number of devices nor on what else
  is computed with it. The devices are in the order of their examples.

  Args:
    key: of the run, typed or the numbers of one: uint32 [2].
    step: int32 [].
    axis_name: the mapped axis over the devices.
    count: examples of one device.

  Returns:
    Typed keys [count].
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key, impl=KEY_IMPL)
  places = lax.axis_index(axis_name) * count + jnp.arange(count)
  key = jax.random.fold_in(key, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)


def loss_and_grads(
  state: TrainState, batch, keys, *, mean, std, objective: Objective = PLAIN
):
  """Objective and gradients of what one device computes at a time.

  Args:
    state: see `state.TrainState`.
    batch: {image: uint8 [batch, height, width, 3], label: int32 [batch]} and
      what `training_inputs` uses.
    keys: of the dropout, see `example_keys`.
    mean, std: see `normalize`.
    objective: is differentiated; frozen parameters get gradients of zero, and
      frozen batch norms keep and use their running statistics.

  Returns:
    (grads, (value, logits, batch_stats)).
  """
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
      training_inputs(batch, mean, std),
      train=True,
      fixed_norms=fixed_norms,
      dropout_keys=keys,
      mutable=['batch_stats'],
    )
    value = objective.value(logits, batch['label'], params)
    return value, (value, logits, updated.get('batch_stats', {}))

  return jax.grad(loss_fn, has_aux=True)(state.params)


def _grads_and_sums(
  state, batch, key, max_examples, *, mean, std, axis_name, objective
):
  """(grads, batch_stats, sums) of this device's part of a batch."""
  count = len(batch['label'])
  keys = example_keys(key, state.step, axis_name, count)

  def compute(stats, piece):
    part, keys = piece
    grads, (value, logits, stats) = loss_and_grads(
      state.replace(batch_stats=stats),
      part,
      keys,
      mean=mean,
      std=std,
      objective=objective,
    )
    sums = _sums(logits, part)
    if not objective.is_plain:
      sums['objective'] = value * len(keys)
    return grads, stats, sums

  pieces = accumulation.num_pieces(count, max_examples)
  return accumulation.accumulate(
    compute, state.batch_stats, (batch, keys), pieces
  )


def train_step(
  state: TrainState,
  batch,
  key,
  *,
  mean,
  std,
  axis_name: str,
  objective: Objective = PLAIN,
  max_examples: int = 0,
  ema_decay: float = 0.0,
  grad_allreduce_dtype: str = 'float32',
):
  """One update from one global batch, of which this device has a part.

  Args:
    state: the state before; the same on every device.
    batch: this device's part, see `loss_and_grads`; also unreadable: bool
      [batch], counted, where there is a policy to skip such images.
    key: of the run; `example_keys` folds step and example into it, so there is
      no random state to save.
    mean, std: see `normalize`.
    axis_name: the mapped axis over the devices.
    objective: what is minimized.
    max_examples: that a device computes at a time; 0: all it has. See
      `accumulation`.
    ema_decay: share of the averaged parameters that a step keeps; in update
      t + 1 at most (1 + t) / (10 + t), as in TensorFlow's moving averages. The
      statistics of batch norms are averages anyway, of the plain parameters.
    grad_allreduce_dtype: in which the gradients go to the other devices and are
      summed.

  Returns:
    (state after, sums over the global batch); see `metrics.example_sums`. If
    the objective is more than the cross-entropy, its sum is there, too.
  """
  grads, batch_stats, sums = _grads_and_sums(
    *(state, batch, key, max_examples),
    mean=mean,
    std=std,
    axis_name=axis_name,
    objective=objective,
  )
  # The only reduction of gradients. Every device has as many examples as the
  # others, so the mean of the means is the mean over the global batch.
  grads = mean_over_devices(grads, axis_name, grad_allreduce_dtype)
  batch_stats = lax.pmean(batch_stats, axis_name)
  state = _update(state, grads, objective.frozen, ema_decay)
  state = state.replace(batch_stats=batch_stats)
  return state, lax.psum(sums, axis_name)


def mean_over_devices(grads, axis_name, dtype):
  """The mean of all devices' gradients, which travel in `dtype`.

  Args:
    grads: float32, of this device.
    axis_name: the mapped axis over the devices.
    dtype: in which they are sent and summed; one device sends nothing.
  """
  count = lax.axis_size(axis_name)
  if count == 1 or dtype == 'float32':
    return lax.pmean(grads, axis_name)
  sent = jax.tree.map(lambda leaf: leaf.astype(dtype), grads)
  return jax.tree.map(
    lambda total, leaf: total.astype(leaf.dtype) / count,
    lax.psum(sent, axis_name),
    grads,
  )


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
  max_examples: int = 0,
  grad_allreduce_dtype: str = 'float32',
):
  """The gradients that `train_step` would apply, for histograms."""
  grads, _, _ = _grads_and_sums(
    *(state, batch, key, max_examples),
    mean=mean,
    std=std,
    axis_name=axis_name,
    objective=objective,
  )
  return mean_over_devices(grads, axis_name, grad_allreduce_dtype)


def eval_step(
  state: TrainState,
  batch,
  *,
  mean,
  std,
  axis_name: str,
  top: int = 0,
  crop_size: int = 0,
):
  """Sums over one global batch, of which this device has a part.

  Args:
    state: only read.
    batch: {image, label, unreadable} as in training and mask: bool [batch].
    mean, std, axis_name: as in `train_step`.
    top: also gives the `top` best classes of each example.
    crop_size: see `crops.logits`.

  Returns:
    Sums as of `train_step`, and confusion: int32 [num_classes, num_classes],
    see `metrics.confusion_matrix`. With `top` also examples: {classes: int32
    [global batch, top], best first, probabilities: float32, the same, loss:
    float32 [global batch]}.
  """
  variables = {'params': state.eval_params, 'batch_stats': state.batch_stats}

  def logits_of(images):
    return state.apply_fn(variables, normalize(images, mean, std), train=False)

  logits = crops.logits(logits_of, batch['image'], crop_size)
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
  """See `metrics.example_sums`; also `unreadable` and `stop`, of the batch."""
  sums = metrics.example_sums(logits, batch['label'], batch.get('mask'))
  if 'unreadable' in batch:
    sums['unreadable'] = jnp.sum(batch['unreadable'], dtype=jnp.int32)
  if 'stop' in batch:
    sums['stop'] = jnp.sum(batch['stop'], dtype=jnp.int32)
  return sums
