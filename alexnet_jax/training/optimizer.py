"""SGD, the optimizers of optax, clipping and the paper's update rule."""

from collections.abc import Iterable, Sequence
import fnmatch

import jax
import jax.numpy as jnp
import optax

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training.state import leaf_names, map_named

# Functions of optax with a learning rate that are no optimizers here.
_UNFIT = {
  'rprop': 'it keeps its first learning rate, whatever the schedule says',
  'noisy_sgd': 'its state is not of numbers alone, and cannot be saved',
  'do*g': 'its steps go by the way from the first weights, also frozen ones',
  '*dpsgd': 'it takes the gradients of single examples',
  'schedule_free*': 'it evaluates other weights than it trains',
  'scale_by_*': 'it is a part of an optimizer',
}


def _mask_of(kind):
  return lambda params: map_named(
    lambda name, _: name.endswith(f'/{kind}'), params
  )


def _factors(name, lr_multipliers):  # at first, and from each entry on
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

  NAME is the first of those that always have the same factor.
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


def _from_optax(options, learning_rate):
  home, _, name = options.name.rpartition('.')
  homes = {'optax': vars(optax), 'optax.contrib': vars(optax.contrib)}
  function, arguments = homes.get(home, {}).get(name), dict(options.arguments)
  if 'learning_rate' not in getattr(function, '__annotations__', {}):
    raise ValueError(
      f'optax {optax.__version__} has no such function with a learning_rate'
    )
  for pattern, reason in _UNFIT.items():
    if fnmatch.fnmatchcase(name, pattern):
      raise ValueError(reason)
  for key, value in arguments.items():
    if key.endswith('mask') and value == 'kernels':
      arguments[key] = _mask_of('kernel')
  return function(learning_rate=learning_rate, **arguments)


def _tried(tx, options):
  """Returns the optimizer with an `init` that tries an update, abstractly."""

  def init(params):
    try:
      state = tx.init(params)
      jax.eval_shape(tx.update, params, state, params)
    except UserError:
      raise
    except Exception as error:  # whatever optax raises
      raise UserError(
        f'config.optimizer.name is {options.name!r}, its arguments are'
        f' {tuple(options.arguments)!r}: this cannot train a run: {error}'
      ) from error
    return state

  return optax.GradientTransformation(init, tx.update)


def make_optimizer(
  learning_rate: float,
  *,
  lr_multipliers: Sequence[tuple[float, str, float]] = (),
  **options,
) -> optax.GradientTransformation:
  """Returns an optimizer whose learning rate is a part of its state.

  With g the gradient plus weight_decay * w and lr the learning rate, `sgd` has
  two update rules:

  - `optax` (as PyTorch): v <- momentum * v + g; w <- w - lr * v
  - `paper` (Krizhevsky et al. 2012, section 5): v <- momentum * v - lr * g;
    w <- w + v, so that a drop of lr does not slow what is under way. Keras' SGD
    does the same.

  Under the name `optax.adam` and the like w <- w + what that optimizer of optax
  returns.

  The options are keys of config.optimizer; for `lr_multipliers` see
  config.schedule: where a factor is 0 a parameter stands still, whatever its
  velocity. `state.with_learning_rate` sets `hyperparams` of the state, float32:
  learning_rate and, with multipliers, phase, how many of them have begun.
  `init` raises UserError if they name unknown parameters, or if optax refuses
  the name or the arguments.
  """
  section = config_lib.make_config().optimizer.lock()
  section.update(options)
  changing = {'learning_rate': learning_rate}
  if lr_multipliers:
    changing['phase'] = 0.0

  def make(learning_rate, phase=None):
    return chain(section, learning_rate, phase, lr_multipliers)

  tx = optax.inject_hyperparams(make)(**changing)
  return tx if section.name == 'sgd' else _tried(tx, section)


def chain(options, learning_rate, phase=None, lr_multipliers=()):
  """Returns the transformations of one learning rate; see `make_optimizer`."""
  factors, steps = [], []
  if phase is not None:
    factors = [_by_phase(phase, lr_multipliers, jnp.multiply)]
  if options.clip_value:
    steps.append(optax.clip(options.clip_value))
  if options.clip_norm:
    steps.append(optax.clip_by_global_norm(options.clip_norm))
  if options.name == 'sgd':
    descent = optax.scale_by_learning_rate(learning_rate)
    steps += _sgd(options, optax.chain(descent, *factors))
  else:
    steps += [_from_optax(options, learning_rate), *factors]
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


def _sgd(options, descent):
  mask = _mask_of('kernel') if options.decay == 'kernels' else None
  decayed = optax.add_decayed_weights(options.weight_decay, mask)
  velocity = optax.trace(options.momentum, options.nesterov)
  if options.update_rule == 'paper':
    return [decayed, descent, velocity]
  return [decayed, velocity, descent]
