import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.training import optimizer

PARAMS = {
  'conv1': {'kernel': np.array([1.0, -2.0]), 'bias': np.array([0.5])},
  'norm1': {'scale': np.array([1.5]), 'bias': np.array([-0.5])},
}
RATES = [0.1] * 5 + [0.01] * 5  # a drop in the middle


def grads_at(params, t):
  return jax.tree.map(lambda p: np.cos(3 * p + t), params)


def run_ours(**options):
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
  tx = optimizer.make_optimizer(1.0, **options)
  opt_state = tx.init(params)
  for t, lr in enumerate(RATES):
    hyperparams = {**opt_state.hyperparams, 'learning_rate': jnp.float32(lr)}
    opt_state = opt_state._replace(hyperparams=hyperparams)
    grads = jax.tree.map(jnp.float32, grads_at(jax.device_get(params), t))
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
  return params


def run_loop(update):
  """`update(path, w, v, g, lr)` gives (w, v) of one leaf."""
  leaves, tree = jax.tree_util.tree_flatten_with_path(PARAMS)
  paths = [path[-1].key for path, _ in leaves]
  params = [leaf for _, leaf in leaves]
  velocities = [np.zeros_like(leaf) for leaf in params]
  for t, lr in enumerate(RATES):
    grads = [np.cos(3 * p + t) for p in params]
    pairs = [
      update(*leaf, lr)
      for leaf in zip(paths, params, velocities, grads, strict=True)
    ]
    params, velocities = (list(x) for x in zip(*pairs, strict=True))
  return jax.tree_util.tree_unflatten(tree, params)


def assert_close(actual, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    actual,
    expected,
  )


def test_sgd_as_in_torch():
  def update(path, w, v, g, lr):
    v = 0.9 * v + g + 0.05 * w
    return w - lr * v, v

  assert_close(run_ours(momentum=0.9, weight_decay=0.05), run_loop(update))


def test_the_papers_rule_keeps_the_rate_in_the_velocity():
  def update(path, w, v, g, lr):
    v = 0.9 * v - 0.05 * lr * w - lr * g
    return w + v, v

  ours = run_ours(momentum=0.9, weight_decay=0.05, update_rule='paper')
  assert_close(ours, run_loop(update))
  # The two rules differ after a drop of lr, and only then.
  other = run_ours(momentum=0.9, weight_decay=0.05)
  difference = other['conv1']['kernel'] - ours['conv1']['kernel']
  assert np.abs(difference).max() > 0.01


def test_nesterov():
  def update(path, w, v, g, lr):
    v = 0.9 * v + g
    return w - lr * (0.9 * v + g), v

  ours = run_ours(momentum=0.9, weight_decay=0.0, nesterov=True)
  assert_close(ours, run_loop(update))


@pytest.mark.parametrize('rule', ['optax', 'paper'])
def test_biases_with_twice_the_rate_and_no_decay(rule):
  def update(path, w, v, g, lr):
    decay = 0.05 if path == 'kernel' else 0.0
    factor = 2.0 if path == 'bias' else 1.0
    if rule == 'optax':
      v = 0.9 * v + g + decay * w
      return w - factor * lr * v, v
    v = 0.9 * v - lr * (g + decay * w)
    return w + factor * v, v

  ours = run_ours(
    weight_decay=0.05, decay='kernels', bias_lr_multiplier=2.0, update_rule=rule
  )
  assert_close(ours, run_loop(update))


def run_optax(make, params=PARAMS):
  """The same steps with a transformation of optax itself."""
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
  opt_state = None
  for t, lr in enumerate(RATES):
    tx = make(lr)
    opt_state = tx.init(params) if opt_state is None else opt_state
    grads = jax.tree.map(jnp.float32, grads_at(jax.device_get(params), t))
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_adam_and_adamw():
  plain = run_ours(name='adam', weight_decay=0.0, b2=0.99, epsilon=1e-6)
  assert_close(plain, run_optax(lambda r: optax.adam(r, b2=0.99, eps=1e-6)))
  decoupled = run_ours(name='adam', weight_decay=0.05, decoupled_decay=True)
  assert_close(
    decoupled, run_optax(lambda r: optax.adamw(r, weight_decay=0.05))
  )


def test_rmsprop():
  ours = run_ours(
    name='rmsprop',
    weight_decay=0.0,
    rms_decay=0.8,
    epsilon=1e-6,
    momentum=0.8,
    update_rule='paper',
  )
  expected = run_optax(
    lambda r: optax.rmsprop(r, decay=0.8, eps=1e-6, momentum=0.8)
  )
  assert_close(ours, expected)


def test_lars():
  ours = run_ours(
    name='lars',
    weight_decay=0.05,
    momentum=0.9,
    trust_coefficient=0.02,
    update_rule='paper',
  )
  expected = run_optax(
    lambda r: optax.lars(
      r,
      weight_decay=0.05,
      trust_coefficient=0.02,
      trust_ratio_mask=optimizer.mask_of('kernel'),
    )
  )
  assert_close(ours, expected)


def test_decoupled_decay_of_sgd_stays_out_of_the_velocity():
  def update(path, w, v, g, lr):
    v = 0.9 * v + g
    return w - lr * (v + 0.05 * w), v

  ours = run_ours(weight_decay=0.05, decoupled_decay=True)
  assert_close(ours, run_loop(update))


def test_unknown_names_are_refused():
  with pytest.raises(TypeError, match='betas'):
    optimizer.make_optimizer(0.1, betas=(0.9, 0.99))
  with pytest.raises(ValueError, match="no optimizer 'adagrad'"):
    optimizer.make_optimizer(0.1, name='adagrad').init(PARAMS)


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
  tx = optimizer.make_optimizer(
    1.0,
    update_rule='paper',
    decay='kernels',
    bias_lr_multiplier=2.0,
    lr_multipliers=rates,
  )
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
  opt_state = tx.init(params)
  expected = {
    (layer, name): [leaf, np.zeros_like(leaf)]
    for layer, leaves in PARAMS.items()
    for name, leaf in leaves.items()
  }
  for t, lr in enumerate(RATES):
    phase = sum(t >= begin for begin in begins)
    hyperparams = {
      'learning_rate': jnp.float32(lr),
      'phase': jnp.float32(phase),
    }
    assert opt_state.hyperparams.keys() == hyperparams.keys()
    opt_state = opt_state._replace(hyperparams=hyperparams)
    grads = jax.tree.map(jnp.float32, grads_at(jax.device_get(params), t))
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    for key, (w, v) in expected.items():
      own = lr * factors[key][phase]
      g = np.cos(3 * w + t) + (5e-4 * w if key[1] == 'kernel' else 0.0)
      v = 0.9 * v - own * g
      # At a learning rate of 0 nothing moves, not even what is under way.
      expected[key] = [w + v if own else w, v]
  for (layer, name), (w, _) in expected.items():
    np.testing.assert_allclose(params[layer][name], w, rtol=1e-5, atol=1e-6)


def test_rates_of_parameters_that_do_not_exist():
  tx = optimizer.make_optimizer(1.0, lr_multipliers=((1, 'conv2/*', 0.1),))
  with pytest.raises(UserError, match=r"'conv2/\*', but .* conv1/bias"):
    tx.init(PARAMS)
