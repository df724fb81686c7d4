"""Optimizers, the decay mask and the paper's update rule."""

from collections.abc import Iterable
from collections.abc import Sequence
import fnmatch

import jax.numpy as jnp
import optax

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training.state import leaf_names
from alexnet_jax.training.state import map_named


def _mask_of(kind):
  """Returns a mask of parameters called so: kernel, bias or scale."""
  return lambda params: map_named(
    lambda name, _: name.endswith(f'/{kind}'), params
  )


def _factors(name, lr_multipliers):
  """Returns factors of a parameter's learning rate: at first, by entry."""
  factors = [1.0]
  for _, pattern, factor in lr_multipliers:
    matches = fnmatch.fnmatchcase(name, pattern)
    factors.append(float(factor) if matches else factors[-1])
  return factors


def group_rates(
  names: Iterable[str],
  lr_multipliers: Sequence[tuple[float, str, float]],
  phase: int,
  learning_rate: float,
) -> dict[str, float]:
  """Returns {learning_rate/NAME: value} of parameters whose factors differ.

  NAME is the first parameter of those that always have the same factor.
  """
  groups = {}
  for name in names:
    groups.setdefault(tuple(_factors(name, lr_multipliers)), name)
  return {
    f'learning_rate/{name}': learning_rate * factors[phase]
    for factors, name in groups.items()
  }


def _by_phase(phase, lr_multipliers, scale):
  """Returns a transformation `scale(update, factor after `phase` entries)`."""

  def init(params):
    names = list(leaf_names(params))
    for _, pattern, _ in lr_multipliers:
      if not fnmatch.filter(names, pattern):
        raise UserError(
          f'config.schedule.lr_multipliers names {pattern!r}, but no parameter'
          f' is called so; there are {", ".join(names)}'
        )
    return optax.EmptyState()

  def scaled(name, leaf):
    factors = jnp.asarray(_factors(name, lr_multipliers), leaf.dtype)
    return scale(leaf, factors[phase.astype(jnp.int32)])

  def update(updates, state, params=None):
    del params
    return map_named(scaled, updates), state

  return optax.GradientTransformation(init, update)


def make_optimizer(
  learning_rate: float,
  *,
  lr_multipliers: Sequence[tuple[float, str, float]] = (),
  **options,
) -> optax.GradientTransformation:
  """Returns an optimizer whose learning rate is a part of its state.

  With g the gradient plus weight_decay * w, lr the learning rate and s the
  optimizer's scaling of g (`sgd`: g itself; `rmsprop`: g over the root of its
  mean square; `lars`: g with a length in proportion to that of each kernel,
  You et al. 2017):

  - `optax` (as PyTorch): v <- momentum * v + s; w <- w - lr * v
  - `paper` (Krizhevsky et al. 2012, section 5): v <- momentum * v - lr * s;
    w <- w + v, so that a drop of lr does not slow what is under way. optax'
    lars and Keras' SGD and RMSprop do the same.

  `adam` (Kingma and Ba 2015) has no v: w <- w - lr * s. With decoupled_decay
  (Loshchilov and Hutter 2019, of the `optax` rule alone) the decay joins v
  instead of g, so that neither s nor momentum changes it.

  Args:
    learning_rate: initial value; `state.with_learning_rate` replaces it.
    lr_multipliers: see `config.schedule.lr_multipliers`. Where a factor is 0 a
      parameter stands still from then on, whatever its velocity.
    **options: keys of config.optimizer; the others have their defaults.

  Returns:
    A transformation whose state has `hyperparams['learning_rate']`, float32,
    and with `lr_multipliers` also `hyperparams['phase']`, float32: how many of
    them have begun. Its `init` raises UserError if they name unknown
    parameters.
  """
  section = config_lib.make_config().optimizer.lock()
  section.update(options)
  changing = {'learning_rate': learning_rate}
  if lr_multipliers:
    changing['phase'] = 0.0

  def make(learning_rate, phase=None):
    return chain(section, learning_rate, phase, lr_multipliers)

  return optax.inject_hyperparams(make)(**changing)


def chain(options, learning_rate, phase=None, lr_multipliers=()):
  """Returns the transformations of one learning rate; see `make_optimizer`."""
  kernels, is_adam = _mask_of('kernel'), options.name == 'adam'
  decayed = optax.add_decayed_weights(
    options.weight_decay, kernels if options.decay == 'kernels' else None
  )
  match options.name:
    case 'sgd':
      scaling = []
    case 'adam':
      scaling = [optax.scale_by_adam(options.b1, options.b2, options.epsilon)]
    case 'rmsprop':
      scaling = [optax.scale_by_rms(options.rms_decay, options.epsilon)]
    case 'lars':
      trust = options.trust_coefficient
      ratio = optax.scale_by_trust_ratio(trust_coefficient=trust)
      scaling = [optax.masked(ratio, kernels)]
    case _:
      names = config_lib.KEYS['optimizer.name'].allowed
      raise UserError(f'the optimizer is {options.name!r}, not one of {names}')
  velocity = (
    [] if is_adam else [optax.trace(options.momentum, options.nesterov)]
  )
  descent = optax.scale_by_learning_rate(learning_rate)
  if phase is not None:
    by_factor = _by_phase(phase, lr_multipliers, jnp.multiply)
    descent = optax.chain(descent, by_factor)
  if options.decoupled_decay:
    steps = [*scaling, *velocity, decayed, descent]
  elif not is_adam and options.update_rule == 'paper':
    steps = [decayed, *scaling, descent, *velocity]
  else:
    steps = [decayed, *scaling, *velocity, descent]
  if options.bias_lr_multiplier != 1.0:
    scale = optax.scale(options.bias_lr_multiplier)
    steps.append(optax.masked(scale, _mask_of('bias')))
  if phase is not None:
    # Where the factor is 0 the paper's rule would still apply the velocity; its
    # source release leaves out the update of such a parameter.
    def stopped(update, factor):
      return jnp.where(factor > 0, update, jnp.zeros_like(update))

    steps.append(_by_phase(phase, lr_multipliers, stopped))
  return optax.chain(*steps)
