"""train_step and eval_step: pure functions of one device's part of a batch.

`parallel` maps them over the devices; `StepOptions` are bound before.
"""

from collections.abc import Callable, Sequence
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import optax

from alexnet_jax.training import metrics, preprocess
from alexnet_jax.training.parallel import AXIS
from alexnet_jax.training.state import map_named, TrainState

# What other generators draw depends on how many keys they draw from at a time,
# and so on the number of devices.
KEY_IMPL = 'threefry2x32'


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """The constants of the step functions."""

  mean: jax.typing.ArrayLike  # see `preprocess.normalize`
  std: float | Sequence[float]
  label_smoothing: float = 0.0  # of the objective; see config.loss
  class_weights: Sequence[float] | jax.Array = ()
  # Names of parameters that do not train, such as conv1/kernel.
  frozen: frozenset[str] = frozenset()
  # Most examples that a device computes at a time in training; 0: all it has.
  microbatch_size: int = 0
  # Share of the averaged parameters that a step keeps; in update t + 1 at most
  # (1 + t) / (10 + t), as in TensorFlow's moving averages. The statistics of
  # batch norms are averages anyway, of the plain parameters.
  ema_decay: float = 0.0
  # In which the gradients go to the other devices and are summed.
  grad_allreduce_dtype: str = 'float32'


def example_keys(key: jax.Array, step: jax.Array, count: int) -> jax.Array:
  """Returns the keys of this device's examples in one step.

  Each depends on the key of the run (typed, or its numbers, uint32 [2]), the
  step and the example's index in the global batch alone. The devices are in the
  order of their examples, `count` each.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key, impl=KEY_IMPL)
  indices = lax.axis_index(AXIS) * count + jnp.arange(count)
  key = jax.random.fold_in(key, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def _objective(logits, labels, options):
  # It compares; indexing would have a scatter as its gradient.
  targets = jax.nn.one_hot(labels, logits.shape[1])
  targets = optax.smooth_labels(targets, options.label_smoothing)
  if len(options.class_weights):
    targets *= jnp.float32(options.class_weights)[None]
  return optax.softmax_cross_entropy(logits, targets).mean()


def loss_and_grads(state: TrainState, batch, keys, options: StepOptions):
  """Returns (grads, (value, logits, batch_stats)) of a device's microbatch.

  Frozen parameters get gradients of zero, and frozen batch norms keep and use
  their running statistics. The batch has label: int32 [batch], what
  `preprocess.augment` uses and maybe scale: float32 [batch], a factor of the
  pixels after the mean is subtracted; for the keys see `example_keys`.
  """
  frozen = options.frozen
  images = preprocess.augment(batch)
  images = preprocess.normalize(images, options.mean, options.std)
  if 'scale' in batch:
    images *= batch['scale'][:, None, None, None]
  fixed_norms = tuple(
    name
    for name in state.batch_stats
    if all(f'{name}/{leaf}' in frozen for leaf in state.params[name])
  )

  def loss_fn(params):
    params = map_named(
      lambda name, w: lax.stop_gradient(w) if name in frozen else w, params
    )
    logits, updated = state.apply_fn(
      {'params': params, 'batch_stats': state.batch_stats},
      images,
      train=True,
      fixed_norms=fixed_norms,
      dropout_keys=keys,
      mutable=['batch_stats'],
    )
    value = _objective(logits, batch['label'], options)
    return value, (value, logits, updated.get('batch_stats', {}))

  return jax.grad(loss_fn, has_aux=True)(state.params)


def num_microbatches(count: int, microbatch_size: int) -> int:
  """Returns the least number of equal parts of `count` examples of one device.

  Each has at most `microbatch_size` examples; 0: all.
  """
  most = microbatch_size or count
  return next(
    n for n in range(1, count + 1) if count % n == 0 and count <= n * most
  )


def accumulate(function: Callable, stats, batch, count: int):
  """Returns what `function` gives for a batch, from its `count` microbatches.

  It is (stats, batch) -> (grads, stats, sums): gradients of a mean over the
  batch, statistics that go on to the next microbatch, sums over the batch.
  Beside what one microbatch takes, there is one tree of gradients in memory.
  Example i belongs to microbatch i % count: with every device doing so, what
  makes up a microbatch of the global batch depends on `count` alone.
  """
  if count == 1:
    return function(stats, batch)

  def microbatch(index):  # every `count`-th example; copies no others
    return jax.tree.map(
      lambda array: lax.dynamic_index_in_dim(
        array.reshape((-1, count, *array.shape[1:])), index, 1, keepdims=False
      ),
      batch,
    )

  def add(carry, index):
    totals, stats = carry
    grads, stats, sums = function(stats, microbatch(index))
    return (jax.tree.map(jnp.add, totals, (grads, sums)), stats), None

  grads, _, sums = jax.eval_shape(function, stats, microbatch(0))
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (grads, sums)
  )
  carry, _ = lax.scan(add, (zeros, stats), jnp.arange(count))
  (grads, sums), stats = carry
  return jax.tree.map(lambda leaf: leaf / count, grads), stats, sums


def _grads_and_sums(state, batch, key, options):
  count = len(batch['label'])
  keys = example_keys(key, state.step, count)
  is_weighted = len(options.class_weights) > 0
  if is_weighted:
    # Over the mean of the global batch, whose parts may have other means.
    weights = jnp.float32(options.class_weights)
    weights /= lax.pmean(weights[batch['label']].mean(), AXIS)
    options = dataclasses.replace(options, class_weights=weights)

  def compute(stats, microbatch):
    part, keys = microbatch
    grads, (value, logits, stats) = loss_and_grads(
      state.replace(batch_stats=stats), part, keys, options
    )
    sums = _sums(logits, part)
    if options.label_smoothing or is_weighted:
      sums['objective'] = value * len(keys)
    return grads, stats, sums

  number = num_microbatches(count, options.microbatch_size)
  grads, stats, sums = accumulate(
    compute, state.batch_stats, (batch, keys), number
  )
  # The only reduction of gradients. Every device has as many examples as the
  # others, so the mean of the means is the mean over the global batch.
  return mean_over_devices(grads, options.grad_allreduce_dtype), stats, sums


def train_step(state: TrainState, batch, key, *, options: StepOptions):
  """Makes one update from one global batch, of which this device has a part.

  The batch is that of `loss_and_grads`, with flags that are counted, bool
  [batch]: unreadable, where the config skips such images, and stop and save,
  see `resume.RunContext`. The key is that of the run, see `example_keys`.

  Returns (state after, sums over the global batch, see `metrics.example_sums`).
  If the objective is more than the cross-entropy, the sums also have it.
  """
  grads, batch_stats, sums = _grads_and_sums(state, batch, key, options)
  batch_stats = lax.pmean(batch_stats, AXIS)
  state = _update(state, grads, options)
  return state.replace(batch_stats=batch_stats), lax.psum(sums, AXIS)


def mean_over_devices(grads, dtype):
  """Returns the mean of all devices' gradients, sent and summed in `dtype`."""
  count = lax.axis_size(AXIS)
  if count == 1 or dtype == 'float32':
    return lax.pmean(grads, AXIS)
  total = lax.psum(jax.tree.map(lambda leaf: leaf.astype(dtype), grads), AXIS)
  return jax.tree.map(
    lambda t, leaf: t.astype(leaf.dtype) / count, total, grads
  )


def _update(state, grads, options):
  """Applies the gradients to all parameters but the frozen ones."""
  frozen = options.frozen
  # The optimizer sees zeros in place of a frozen parameter: no decay gathers in
  # its velocity while it waits.
  seen = map_named(
    lambda name, w: jnp.zeros_like(w) if name in frozen else w, state.params
  )
  updates, opt_state = state.tx.update(grads, state.opt_state, seen)
  params = map_named(
    lambda name, w, update: w if name in frozen else w + update,
    state.params,
    updates,
  )
  # The average starts with the initial weights; it forgets them sooner while
  # there are few others.
  decay = jnp.minimum(options.ema_decay, (1 + state.step) / (10 + state.step))
  average = jax.tree.map(
    lambda old, new: decay * old + (1 - decay) * new,
    state.ema_params,
    params if state.ema_params else {},
  )
  return state.replace(
    step=state.step + 1, params=params, opt_state=opt_state, ema_params=average
  )


def eval_step(
  state: TrainState,
  batch,
  *,
  options: StepOptions,
  top: int = 5,
  crop_size: int = 0,
):
  """Returns sums and predictions of one global batch; this device has a part.

  The batch has image, label, unreadable and stop as in training, and mask: bool
  [batch]; for `crop_size` see `preprocess.crop_logits`.

  Returns sums as of `train_step`, num_classes: int32 [], and examples, of the
  global batch: {labels, counts: its labels and mask, classes: int32 [batch,
  top], best first, probabilities: float32, the same, loss: float32 [batch]}.
  """
  variables = {'params': state.eval_params, 'batch_stats': state.batch_stats}

  def logits_of(images):
    images = preprocess.normalize(images, options.mean, options.std)
    return state.apply_fn(variables, images, train=False)

  logits = preprocess.crop_logits(logits_of, batch['image'], crop_size)
  examples = {
    'labels': batch['label'],
    'counts': batch['mask'],
    **metrics.best_classes(logits, batch['label'], top),
  }
  return {
    **lax.psum(_sums(logits, batch), AXIS),
    'num_classes': jnp.int32(logits.shape[1]),
    'examples': lax.all_gather(examples, AXIS, tiled=True),
  }


def feature_step(
  state: TrainState,
  batch,
  *,
  options: StepOptions,
  layers: Sequence[tuple[str, bool]],
):
  """Returns the outputs of layers for a global batch, as of `eval_step`.

  Each of `layers` is (name, whether the activation that follows belongs to it).
  Returns (labels, mask, {layer: float32 [batch, ...]}).
  """
  images = preprocess.normalize(batch['image'], options.mean, options.std)
  _, seen = state.apply_fn(
    {'params': state.eval_params, 'batch_stats': state.batch_stats},
    images,
    train=False,
    capture_intermediates=lambda module, _: module.name in dict(layers),
  )
  outputs, model = {}, state.apply_fn.__self__
  for name, is_activated in layers:
    output = seen['intermediates'][name]['__call__'][0].astype(jnp.float32)
    outputs[name] = model.activate(output) if is_activated else output
  result = batch['label'], batch['mask'], outputs
  return lax.all_gather(result, AXIS, tiled=True)


def _sums(logits, batch):
  """Returns `metrics.example_sums`; also counts the flags that are there."""
  sums = metrics.example_sums(logits, batch['label'], batch.get('mask'))
  for name in ('unreadable', 'stop', 'save'):
    if name in batch:
      sums[name] = jnp.sum(batch[name], dtype=jnp.int32)
  return sums
