"""Optimizers, the decay mask and the paper's update rule."""

from collections.abc import Sequence
import fnmatch

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.errors import UserError
from alexnet_jax.training.state import leaf_name

OPTIMIZERS = ('sgd', 'adam', 'rmsprop', 'lars')


def kernel_mask(params):
  """True for kernels, False for biases and normalization scales."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def bias_mask(params):
  """True for biases."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'bias', params
  )


def rate_factors(
  name: str, lr_multipliers: Sequence[tuple[float, str, float]]
) -> list[float]:
  """Factors of one parameter's rate: at first, and from each entry on.

  Args:
    name: of the parameter, such as `conv1/kernel`.
    lr_multipliers: see `config.schedule.lr_multipliers`.
  """
  factors = [1.0]
  for _, pattern, factor in lr_multipliers:
    matches = fnmatch.fnmatchcase(name, pattern)
    factors.append(float(factor) if matches else factors[-1])
  return factors


def _by_phase(phase, lr_multipliers, scale):
  """Changes each update by the factor that counts after `phase` entries.

  Args:
    phase: float32 [].
    lr_multipliers: see `config.schedule.lr_multipliers`.
    scale: (update, factor of the parameter's rate) -> update.
  """

  def init(params):
    names = [
      leaf_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for _, pattern, _ in lr_multipliers:
      if not fnmatch.filter(names, pattern):
        raise UserError(
          f'config.schedule.lr_multipliers names {pattern!r}, but no parameter'
          f' is called so; there are {", ".join(names)}'
        )
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params
    index = phase.astype(jnp.int32)
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: scale(
        leaf,
        jnp.asarray(rate_factors(leaf_name(path), lr_multipliers), leaf.dtype)[
          index
        ],
      ),
      updates,
    ), state

  return optax.GradientTransformation(init, update)


def _stand_still(update, factor):
  """Of a rate of 0 also what is under way, which the paper's rule lets go on.

  As in the source release, which leaves out the update of such a parameter.
  """
  return jnp.where(factor > 0, update, jnp.zeros_like(update))


def make_optimizer(
  learning_rate: float,
  *,
  name: str = 'sgd',
  momentum: float = 0.9,
  nesterov: bool = False,
  b1: float = 0.9,
  b2: float = 0.999,
  rms_decay: float = 0.9,
  epsilon: float = 1e-8,
  trust_coefficient: float = 0.001,
  weight_decay: float = 5e-4,
  decoupled_decay: bool = False,
  decay: str = 'all',
  bias_lr_multiplier: float = 1.0,
  update_rule: str = 'optax',
  lr_multipliers: Sequence[tuple[float, str, float]] = (),
) -> optax.GradientTransformation:
  """An optimizer whose learning rate is a part of its state.

  With g the gradient plus weight_decay * w, lr the learning rate and s what
  the optimizer makes of g (`sgd`: g itself; `rmsprop`: g over the root of its
  mean square; `lars`: g with a length in proportion to that of each kernel,
  You et al. 2017):

  - `optax` (as PyTorch): v <- momentum * v + s; w <- w - lr * v
  - `paper` (Krizhevsky et al. 2012, section 5): v <- momentum * v - lr * s;
    w <- w + v, so that a drop of lr does not slow what is under way. optax'
    lars and Keras' RMSprop do so, too.

  `adam` (Kingma and Ba 2015) has no v: w <- w - lr * s.

  Args:
    learning_rate: initial value; `state.with_learning_rate` replaces it.
    name: one of OPTIMIZERS.
    momentum: factor on the velocity, of all but `adam`.
    nesterov: whether the gradient is taken one step ahead.
    b1: decay of the mean of gradients, of `adam`.
    b2: decay of the mean of their squares, of `adam`.
    rms_decay: the same of `rmsprop`.
    epsilon: keeps `adam` and `rmsprop` from dividing by zero.
    trust_coefficient: length of a step over that of the kernel, of `lars`.
    weight_decay: factor on the weights that joins the gradient.
    decoupled_decay: the decay joins v instead of g (Loshchilov and Hutter
      2019), so that neither s nor momentum changes it: w <- w - lr *
      weight_decay * w. Only of the `optax` rule.
    decay: `all` parameters decay, or `kernels` only.
    bias_lr_multiplier: factor on the learning rate of biases; 2 in the paper's
      code.
    update_rule: `optax` or `paper`.
    lr_multipliers: see `config.schedule.lr_multipliers`. Where a factor is 0 a
      parameter stands still from then on, whatever its velocity.

  Returns:
    A transformation whose state has `hyperparams['learning_rate']`, float32,
    and with `lr_multipliers` also `hyperparams['phase']`, float32: how many of
    them count.

  Raises:
    ValueError: if `name` is unknown.
    UserError: by its `init`, if `lr_multipliers` name unknown parameters.
  """
  scalings = {
    'adam': lambda: optax.scale_by_adam(b1, b2, epsilon),
    'rmsprop': lambda: optax.scale_by_rms(rms_decay, epsilon),
    'lars': lambda: optax.masked(
      optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient),
      kernel_mask,
    ),
  }
  if name not in OPTIMIZERS:
    raise ValueError(f'optimizer is {name!r}, not one of {OPTIMIZERS}')

  def make(learning_rate, phase=None):
    decayed = optax.add_decayed_weights(
      weight_decay, kernel_mask if decay == 'kernels' else None
    )
    scaling = [scalings[name]()] if name in scalings else []
    velocity = [] if name == 'adam' else [optax.trace(momentum, nesterov)]
    rate = optax.scale_by_learning_rate(learning_rate)
    if phase is not None:
      rate = optax.chain(rate, _by_phase(phase, lr_multipliers, jnp.multiply))
    if decoupled_decay:
      steps = [*scaling, *velocity, decayed, rate]
    elif update_rule == 'paper':
      steps = [decayed, *scaling, rate, *velocity]
    else:
      steps = [decayed, *scaling, *velocity, rate]
    if bias_lr_multiplier != 1.0:
      steps.append(optax.masked(optax.scale(bias_lr_multiplier), bias_mask))
    if phase is not None:
      steps.append(_by_phase(phase, lr_multipliers, _stand_still))
    return optax.chain(*steps)

  changing = {'learning_rate': learning_rate}
  if lr_multipliers:
    changing['phase'] = 0.0
  return optax.inject_hyperparams(make)(**changing)
