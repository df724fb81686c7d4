"""The recipes of the paper and of its source release, number by number."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import config as config_lib, validation
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation.paper import PUBLISHED
from alexnet_jax.training import build, optimizer, schedule, state as state_lib

EXAMPLES = 1_281_167  # of ImageNet's training split
CONVOLUTIONS = tuple(f'conv{number}' for number in range(1, 6))
DENSE = ('dense1', 'dense2', 'head')


def load(name):
  return validation.load_config([f'--config={name}'])


def step_of(epoch):
  return math.ceil(epoch * EXAMPLES / 128)


@functools.cache
def narrow_state(name):
  """The state of a recipe, with its names and rules, and few numbers."""
  config = load(name)
  config.model.width_multiplier = 1 / 16
  return build.make_state(config, build.make_model(config, 1000))


def moves(config, state, grad, weight, phase=None):
  """{name: first update} of gradients and parameters that are all alike."""

  def full(value):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), state.params)

  phases = {} if phase is None else {'phase': jnp.float32(phase)}
  rate = jnp.float32(config.optimizer.learning_rate)
  state = state_lib.with_learning_rate(state, learning_rate=rate, **phases)
  updates, _ = state.tx.update(full(grad), state.opt_state, full(weight))
  named = state_lib.leaf_names(updates)
  return {name: float(np.ravel(leaf)[0]) for name, leaf in named.items()}


@pytest.mark.parametrize(
  ('name', 'wide'),
  [
    ('imagenet_paper', ()),
    ('imagenet_source_release', ('conv3', 'conv4', 'conv5')),
  ],
)
def test_network_and_initial_weights(name, wide):
  assert build.network_costs(load(name), 1000)['parameters'] == 60_965_224
  params = narrow_state(name).params
  for layer in (*CONVOLUTIONS, *DENSE):
    deviation = 0.03 if layer in wide else 0.01
    kernel = np.asarray(params[layer]['kernel'])
    error = deviation / math.sqrt(2 * kernel.size)
    assert kernel.std() == pytest.approx(deviation, abs=5 * error), layer
    one = layer in ('conv2', 'conv4', 'conv5', 'dense1', 'dense2')
    np.testing.assert_array_equal(params[layer]['bias'], float(one))


def test_training_of_the_paper():
  config = load('imagenet_paper')
  resolved = schedule.resolve_durations(config, EXAMPLES)
  assert resolved.num_steps == step_of(90)
  assert resolved.pca_lighting_steps == 0  # to the end
  # The rate is inside: the first velocity is the first update.
  state = narrow_state('imagenet_paper')
  for value in moves(config, state, 1.0, 0.0).values():
    assert value == pytest.approx(-0.01)
  for value in moves(config, state, 0.0, 1.0).values():
    assert value == pytest.approx(-0.01 * 5e-4)
  # Divided by 10 three times, when the validation error stops improving.
  plateau = schedule.PlateauState(config.optimizer.learning_rate)
  rates = []
  for _ in range(40):
    plateau = schedule.update_plateau(config.schedule, plateau, 0.5)
    rates.append(plateau.learning_rate)
  assert sorted(set(rates)) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])


def test_the_prototype_trains_as_keras_does_over_a_drop():
  """Keras' SGD: m <- momentum * m - lr * g; w <- w + m."""
  tx = optimizer.make_optimizer(**load('keras_prototype').optimizer.to_dict())
  params = {'w': {'kernel': jnp.zeros(1)}}
  state, grads, w, m = tx.init(params), {'w': {'kernel': jnp.ones(1)}}, 0.0, 0.0
  for t in range(20):
    lr = 0.01 if t < 10 else 0.001
    state = state._replace(hyperparams={'learning_rate': jnp.float32(lr)})
    updates, state = tx.update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    m = 0.9 * m - lr
    w += m
    assert float(params['w']['kernel'][0]) == pytest.approx(w, rel=1e-5)
  assert w == pytest.approx(-0.8370, abs=1e-4)


def expected_rates(conv1, rest, conv1_bias=0.02):
  """{name: learning rate} of kernels and biases."""
  rates = {f'{layer}/kernel': rest for layer in (*CONVOLUTIONS, *DENSE)}
  rates |= {f'{layer}/bias': 0.02 for layer in (*CONVOLUTIONS, *DENSE)}
  return rates | {'conv1/kernel': conv1, 'conv1/bias': conv1_bias}


@pytest.mark.parametrize(
  ('epoch', 'rates'),
  [
    (24.99, expected_rates(1e-2, 1e-2)),
    (25, expected_rates(1e-3, 1e-3)),
    (67, expected_rates(1e-5, 1e-4)),
    (72, expected_rates(0.0, 1e-4, 0.0)),
    (79, expected_rates(0.0, 1e-5, 0.0)),
  ],
)
def test_recorded_rates_of_the_source_release(epoch, rates):
  config = load('imagenet_source_release')
  resolved = schedule.resolve_durations(config, EXAMPLES)
  assert resolved.num_steps == step_of(91)
  assert resolved.pca_lighting_steps == step_of(67)
  begins = resolved.lr_multiplier_steps
  phase = sum(step_of(epoch) >= begin for begin in begins)
  state = narrow_state('imagenet_source_release')
  found = moves(config, state, 1.0, 0.0, phase)
  assert found == pytest.approx({name: -rate for name, rate in rates.items()})
  # Kernels alone decay.
  found = moves(config, state, 0.0, 1.0, phase)
  for name, rate in rates.items():
    decay = 5e-4 if name.endswith('kernel') else 0.0
    assert found[name] == pytest.approx(-rate * decay), name


@pytest.mark.parametrize(
  ('name', 'key', 'value'),
  [
    ('tanh', 'model.activation', 'tanh'),
    ('one_tower', 'model.groups', (1, 1, 1, 1, 1)),
    ('no_lrn', 'model.norm', 'none'),
    ('non_overlapping_pooling', 'model.pool_size', 2),
    ('no_lighting', 'data.pca_lighting', 0.0),
    ('no_dropout', 'model.dropout', 0.0),
  ],
)
def test_an_ablation_is_one_key_away_from_the_paper(name, key, value):
  """And is a network of the same widths; also with small data of one's own."""
  recipe = f'--config=configs/imagenet_paper.py:{name}'
  config = validation.load_config(
    [recipe, '--config.data.source=folder', '--config.data.path=x']
  )
  paper, changed = map(config_lib.flatten, (load('imagenet_paper'), config))
  ours = {'data.source', 'data.path'}
  different = {k for k in paper if paper[k] != changed[k]} - ours
  assert (different, changed[key]) == ({key}, value)
  # What it cost the paper stands beside this very change.
  assert f'{key}: {paper[key]!r} -> {value!r}' in PUBLISHED
  _, rows = build.network_layers(config, 1000)
  shapes = {name: shape for name, shape, _ in rows}
  assert shapes['conv5'] == (13, 13, 256)
  assert shapes['pool5'] == (6, 6, 256)
  assert ('lrn1' in shapes) == (name != 'no_lrn')


def test_another_ablation_is_refused():
  with pytest.raises(UserError, match="no ablation 'no_relu'; there are tanh,"):
    load('imagenet_paper:no_relu')
