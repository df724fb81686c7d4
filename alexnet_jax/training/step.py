"""train_step and eval_step: pure functions of one device's part of a batch.

`parallel` maps them over the devices; `StepOptions` are bound before.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import optax

from alexnet_jax.training import metrics
from alexnet_jax.training import preprocess
from alexnet_jax.training.state import leaf_name
from alexnet_jax.training.state import leaf_names
from alexnet_jax.training.state import TrainState

# What other generators draw depends on how many keys they draw from at a time,
# and so on the number of devices.
KEY_IMPL = 'threefry2x32'


@dataclasses.dataclass(frozen=True)
class Objective:
  """The training objective; see config.loss.

  Attributes:
    frozen: names of parameters that do not train, such as conv1/kernel.
  """

  label_smoothing: float = 0.0
  l1: float = 0.0
  l2: float = 0.0
  frozen: frozenset[str] = frozenset()

  @property
  def is_plain(self) -> bool:
    """True for the cross-entropy and nothing else."""
    return not (self.label_smoothing or self.l1 or self.l2)

  def value(self, logits, labels, params) -> jax.Array:
    """Returns the mean over a batch of logits [batch, num_classes]."""
    if self.is_plain:
      # Comparing, where indexing would have a scatter as its gradient.
      own = labels[:, None] == jnp.arange(logits.shape[1])[None]
      losses = optax.softmax_cross_entropy(logits, own.astype(logits.dtype))
      return losses.mean()
    targets = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[1]), self.label_smoothing
    )
    losses = optax.softmax_cross_entropy(logits, targets)
    kernels = [w for n, w in leaf_names(params).items() if n.endswith('kernel')]
    absolute = sum(jnp.sum(jnp.abs(w)) for w in kernels) if self.l1 else 0.0
    squares = sum(jnp.sum(jnp.square(w)) for w in kernels) if self.l2 else 0.0
    penalty = jnp.asarray(self.l1 * absolute + self.l2 * squares, jnp.float32)
    return losses.mean() + penalty


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """The constants of the step functions.

  Attributes:
    mean, std: see `preprocess.normalize`.
    objective: what is minimized.
    microbatch_size: most examples that a device computes at a time in training;
      0: all it has. See `accumulate`.
    ema_decay: share of the averaged parameters that a step keeps; in update
      t + 1 at most (1 + t) / (10 + t), as in TensorFlow's moving averages. The
      statistics of batch norms are averages anyway, of the plain parameters.
    grad_allreduce_dtype: dtype in which the gradients go to the other devices
      and are summed.
  """

  mean: jax.typing.ArrayLike
  std: float | Sequence[float]
  axis_name: str
  objective: Objective = Objective()
  microbatch_size: int = 0
  ema_decay: float = 0.0
  grad_allreduce_dtype: str = 'float32'


def example_keys(
  key: jax.Array, step: jax.Array, axis_name: str, count: int
) -> jax.Array:
  """Returns the keys of this device's examples in one step.

  The key of an example depends on the key of the run, the step and the
  example's index in the global batch: neither on the number of devices nor on
  what else is computed with it. The devices are in the order of their examples.

  Args:
    key: of the run, typed or the numbers of one: uint32 [2].
    count: examples of one device.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key, impl=KEY_IMPL)
  indices = lax.axis_index(axis_name) * count + jnp.arange(count)
  key = jax.random.fold_in(key, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def loss_and_grads(state: TrainState, batch, keys, options: StepOptions):
  """Returns (grads, (value, logits, batch_stats)) of a device's microbatch.

  Frozen parameters get gradients of zero, and frozen batch norms keep and use
  their running statistics.

  Args:
    batch: {image: uint8 [batch, height, width, 3], label: int32 [batch]} and
      what `preprocess.training_inputs` uses.
    keys: of the dropout, see `example_keys`.
  """
  objective = options.objective
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
      preprocess.training_inputs(batch, options.mean, options.std),
      train=True,
      fixed_norms=fixed_norms,
      dropout_keys=keys,
      mutable=['batch_stats'],
    )
    value = objective.value(logits, batch['label'], params)
    return value, (value, logits, updated.get('batch_stats', {}))

  return jax.grad(loss_fn, has_aux=True)(state.params)


def num_microbatches(count: int, microbatch_size: int) -> int:
  """Returns the smallest number of equal microbatches of at most that size.

  Args:
    count: examples of one device.
    microbatch_size: 0: all of them.
  """
  most = microbatch_size or count
  return next(
    n for n in range(1, count + 1) if count % n == 0 and count <= n * most
  )


def accumulate(function: Callable, stats, batch, count: int):
  """Accumulates gradients and sums over the microbatches of a batch.

  Beside what one microbatch takes, there is one tree of gradients in memory.

  Args:
    function: (stats, batch) -> (grads, stats, sums): gradients of a mean over
      the batch, statistics that go on to the next microbatch, sums over the
      batch.
    count: number of microbatches; divides the batch. Example i belongs to
      microbatch i % count: with every device doing so, what makes up a
      microbatch of the global batch depends on `count` alone.

  Returns:
    What `function` would give for the whole batch.
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
    grads, stats, sums = carry
    more_grads, stats, more_sums = function(stats, microbatch(index))
    grads = jax.tree.map(jnp.add, grads, more_grads)
    return (grads, stats, jax.tree.map(jnp.add, sums, more_sums)), None

  grads, _, sums = jax.eval_shape(function, stats, microbatch(0))
  grads, sums = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (grads, sums)
  )
  carry, _ = lax.scan(add, (grads, stats, sums), jnp.arange(count))
  grads, stats, sums = carry
  return jax.tree.map(lambda leaf: leaf / count, grads), stats, sums


def _grads_and_sums(state, batch, key, options):
  """Computes (grads, batch_stats, sums) of this device's part of a batch."""
  count = len(batch['label'])
  keys = example_keys(key, state.step, options.axis_name, count)

  def compute(stats, microbatch):
    part, keys = microbatch
    grads, (value, logits, stats) = loss_and_grads(
      state.replace(batch_stats=stats), part, keys, options
    )
    sums = _sums(logits, part)
    if not options.objective.is_plain:
      sums['objective'] = value * len(keys)
    return grads, stats, sums

  number = num_microbatches(count, options.microbatch_size)
  return accumulate(compute, state.batch_stats, (batch, keys), number)


def train_step(state: TrainState, batch, key, *, options: StepOptions):
  """Makes one update from one global batch, of which this device has a part.

  Args:
    batch: this device's part, see `loss_and_grads`; also unreadable: bool
      [batch], counted, where the config skips such images, and stop: bool
      [batch], see `resume.RunContext`.
    key: of the run; `example_keys` folds step and example into it, so there is
      no random state to save.

  Returns:
    (state after, sums over the global batch); see `metrics.example_sums`. If
    the objective is more than the cross-entropy, the sums also have it.
  """
  grads, batch_stats, sums = _grads_and_sums(state, batch, key, options)
  # The only reduction of gradients. Every device has as many examples as the
  # others, so the mean of the means is the mean over the global batch.
  grads = mean_over_devices(
    grads, options.axis_name, options.grad_allreduce_dtype
  )
  batch_stats = lax.pmean(batch_stats, options.axis_name)
  state = _update(state, grads, options.objective.frozen, options.ema_decay)
  state = state.replace(batch_stats=batch_stats)
  return state, lax.psum(sums, options.axis_name)


def mean_over_devices(grads, axis_name, dtype):
  """Returns the mean of all devices' gradients, sent and summed in `dtype`."""
  count = lax.axis_size(axis_name)
  if count == 1 or dtype == 'float32':
    return lax.pmean(grads, axis_name)
  sent = jax.tree.map(lambda leaf: leaf.astype(dtype), grads)
  total = lax.psum(sent, axis_name)
  return jax.tree.map(
    lambda t, leaf: t.astype(leaf.dtype) / count, total, grads
  )


def _update(state, grads, frozen, ema_decay):
  """Applies the gradients to all parameters but the frozen ones."""
  # The optimizer sees zeros in place of a frozen parameter: no decay gathers in
  # its velocity while it waits.
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
  """Maps leaves with the name of each, as in `state.leaf_names`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: function(leaf_name(path), *leaves), tree, *rest
  )


def grad_step(state: TrainState, batch, key, *, options: StepOptions):
  """Returns the gradients that `train_step` would apply, for histograms."""
  grads, _, _ = _grads_and_sums(state, batch, key, options)
  return mean_over_devices(
    grads, options.axis_name, options.grad_allreduce_dtype
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

  Args:
    batch: {image, label, unreadable, stop} as in training and mask: bool
      [batch].
    top: number of classes that are predicted for each example.
    crop_size: see `preprocess.crop_logits`.

  Returns:
    Sums as of `train_step`, num_classes: int32 [], and examples, of the global
    batch: {labels, counts: its labels and mask, classes: int32 [batch, top],
    best first, probabilities: float32, the same, loss: float32 [batch]}.
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
    **lax.psum(_sums(logits, batch), options.axis_name),
    'num_classes': jnp.int32(logits.shape[1]),
    'examples': lax.all_gather(examples, options.axis_name, tiled=True),
  }


def _sums(logits, batch):
  """Returns `metrics.example_sums`; also `unreadable` and `stop`, if there."""
  sums = metrics.example_sums(logits, batch['label'], batch.get('mask'))
  for name in ('unreadable', 'stop'):
    if name in batch:
      sums[name] = jnp.sum(batch[name], dtype=jnp.int32)
  return sums
