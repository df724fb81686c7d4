import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.training import optimizer
from tests.training import steps

PARAMS = {
  'conv1': {'kernel': np.array([1.0, -2.0]), 'bias': np.array([0.5])},
  'norm1': {'scale': np.array([1.5]), 'bias': np.array([-0.5])},
}
RATES = [0.1] * 5 + [0.01] * 5  # a drop in the middle


def grads_at(params, t):
  return jax.tree.map(lambda p: np.cos(3 * p + t), params)


def run(make, phases=None):
  """Ten steps with `make(lr)`, of which the first one's state goes on."""
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
  opt_state = None
  for t, lr in enumerate(RATES):
    tx = make(lr)
    opt_state = tx.init(params) if opt_state is None else opt_state
    if hasattr(opt_state, 'hyperparams'):
      values = {'learning_rate': jnp.float32(lr)}
      values |= {'phase': jnp.float32(phases[t])} if phases else {}
      assert opt_state.hyperparams.keys() == values.keys()
      opt_state = opt_state._replace(hyperparams=values)
    grads = jax.tree.map(jnp.float32, grads_at(jax.device_get(params), t))
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
  return params


def run_ours(**options):
  tx = optimizer.make_optimizer(1.0, **options)
  return run(lambda lr: tx)


def run_loop(update):
  """`update(name, w, v, g, lr)` gives (w, v) of one leaf."""

  def one(path, w):
    v = np.zeros_like(w)
    for t, lr in enumerate(RATES):
      w, v = update(path[-1].key, w, v, np.cos(3 * w + t), lr)
    return w

  return jax.tree_util.tree_map_with_path(one, PARAMS)


assert_close = functools.partial(steps.assert_close, rtol=1e-5, atol=1e-6)


def sgd_of_torch(name, w, v, g, lr):
  v = 0.9 * v + g + 0.05 * w
  return w - lr * v, v


def nesterov(name, w, v, g, lr):
  v = 0.9 * v + g
  return w - lr * (0.9 * v + g), v


def caffe_of_optax(name, w, v, g, lr):
  """Biases with twice the rate and no decay."""
  v = 0.9 * v + g + (0.05 * w if name == 'kernel' else 0.0)
  return w - (2 if name == 'bias' else 1) * lr * v, v


def caffe_of_the_paper(name, w, v, g, lr):
  v = 0.9 * v - lr * (g + (0.05 * w if name == 'kernel' else 0.0))
  return w + (2 if name == 'bias' else 1) * v, v


CAFFE = {'decay': 'kernels', 'bias_lr_multiplier': 2.0}


@pytest.mark.parametrize(
  ('options', 'update'),
  [
    ({}, sgd_of_torch),
    ({'weight_decay': 0.0, 'nesterov': True}, nesterov),
    (CAFFE, caffe_of_optax),
    ({**CAFFE, 'update_rule': 'paper'}, caffe_of_the_paper),
  ],
)
def test_sgd_by_hand_over_a_drop_of_the_learning_rate(options, update):
  ours = run_ours(**{'momentum': 0.9, 'weight_decay': 0.05, **options})
  assert_close(ours, run_loop(update))


MASK = jax.tree_util.tree_map_with_path(
  lambda path, _: path[-1].key == 'kernel', PARAMS
)


def optax_options(name, **arguments):
  return {'name': f'optax.{name}', 'arguments': tuple(arguments.items())}


@pytest.mark.parametrize(
  ('options', 'make'),
  [
    (
      optax_options('adam', eps=1e-6, b2=0.99),
      lambda lr: optax.adam(lr, b2=0.99, eps=1e-6),
    ),
    (
      optax_options('lars', weight_decay=0.05, trust_ratio_mask='kernels'),
      lambda lr: optax.lars(lr, weight_decay=0.05, trust_ratio_mask=MASK),
    ),
    (
      optax_options('lion', b1=0.8, weight_decay=0.1, mask='kernels'),
      lambda lr: optax.lion(lr, b1=0.8, weight_decay=0.1, mask=MASK),
    ),
    (optax_options('sgd', momentum=0.9), lambda lr: optax.sgd(lr, 0.9)),
    (
      optax_options('contrib.ademamix', alpha=2.0),
      lambda lr: optax.contrib.ademamix(lr, alpha=2.0),
    ),
  ],
)
def test_others_do_what_optax_does(options, make):
  assert_close(run_ours(**options), run(make))


def test_multipliers_scale_what_an_optimizer_of_optax_returns():
  params, theirs = jax.tree.map(jnp.float32, PARAMS), optax.adamw(0.1)
  rates = ((1, 'conv1/*', 0.5), (2, 'norm1/*', 0.0))
  ours = optimizer.make_optimizer(
    0.1, name='optax.adamw', bias_lr_multiplier=2.0, lr_multipliers=rates
  )
  state = ours.init(params)
  hyperparams = {**state.hyperparams, 'phase': jnp.float32(2)}
  grads = grads_at(params, 0)
  updates, _ = ours.update(
    grads, state._replace(hyperparams=hyperparams), params
  )
  expected, _ = theirs.update(grads, theirs.init(params), params)
  factors = {
    'conv1': {'kernel': 0.5, 'bias': 1.0},
    'norm1': {'scale': 0.0, 'bias': 0.0},
  }
  assert_close(updates, jax.tree.map(jnp.multiply, expected, factors))


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('optax.adma', {}, "'optax.adma', its .* no such function"),
    ('optax.os.system', {}, 'no such function'),
    ('optax.scale_by_learning_rate', {}, 'a part of an optimizer'),
    ('optax.noisy_sgd', {}, 'cannot be saved'),
    ('optax.contrib.dpsgd', {'seed': 0}, 'gradients of single examples'),
    ('optax.lbfgs', {}, "missing 3 .*'value'"),
    ('optax.lion', {'b1': 'x'}, r"\(\('b1', 'x'\),\): this cannot train"),
  ],
)
def test_what_optax_cannot_do_is_refused(name, arguments, message):
  params = jax.tree.map(jnp.float32, PARAMS)
  arguments = tuple(arguments.items())
  with pytest.raises(UserError, match=message):
    optimizer.make_optimizer(0.1, name=name, arguments=arguments).init(params)


@pytest.mark.parametrize('name', ['sgd', 'optax.sgd'])
@pytest.mark.parametrize('limit', [0.1, 100.0])
def test_clipping_by_hand_comes_before_the_decay(name, limit):
  decay = {'weight_decay': 0.5, 'momentum': 0.0} if name == 'sgd' else {}
  params = jax.tree.map(jnp.float32, PARAMS)
  grads = jax.tree.map(lambda leaf: 3 * leaf, params)
  options = {'clip_norm': limit, 'clip_value': 5.0}
  tx = optimizer.make_optimizer(0.1, name=name, **options, **decay)
  updates, _ = tx.update(grads, tx.init(params), params)
  cut = jax.tree.map(lambda leaf: np.clip(3 * leaf, -5, 5), PARAMS)
  norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(cut)))
  expected = jax.tree.map(
    lambda w, g: -0.1 * (g * min(1, limit / norm) + bool(decay) * 0.5 * w),
    PARAMS,
    cut,
  )
  assert_close(updates, expected)


def test_rates_of_their_own_as_in_the_source_release():
  """The paper's rule, with rates that change for some parameters only."""
  rates = ((1, '*/kernel', 0.1), (2, 'conv1/*', 0.5), (3, 'norm1/*', 0.0))
  begins = (3, 5, 8)  # steps; an epoch has as many as one likes
  factors = {  # by parameter: at first, and from each of these on
    ('conv1', 'kernel'): (1.0, 0.1, 0.5, 0.5),
    ('conv1', 'bias'): (2.0, 2.0, 1.0, 1.0),
    ('norm1', 'scale'): (1.0, 1.0, 1.0, 0.0),
    ('norm1', 'bias'): (2.0, 2.0, 2.0, 0.0),
  }
  phases = [sum(t >= begin for begin in begins) for t in range(len(RATES))]
  tx = optimizer.make_optimizer(
    1.0,
    update_rule='paper',
    decay='kernels',
    bias_lr_multiplier=2.0,
    lr_multipliers=rates,
  )

  def one(path, w):
    layer, name = (key.key for key in path)
    v = np.zeros_like(w)
    for t, (lr, phase) in enumerate(zip(RATES, phases, strict=True)):
      own = lr * factors[layer, name][phase]
      g = np.cos(3 * w + t) + (5e-4 * w if name == 'kernel' else 0.0)
      v = 0.9 * v - own * g
      # At a learning rate of 0 nothing moves, not even what is under way.
      w = w + v if own else w
    return w

  expected = jax.tree_util.tree_map_with_path(one, PARAMS)
  assert_close(run(lambda lr: tx, phases), expected)
