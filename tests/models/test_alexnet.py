import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import layers
from alexnet_jax.models.alexnet import AlexNet, resolve_implementation

# A network that a test can compute: 36 pixels, a few channels.
SMALL = {
  'num_classes': 7,
  'channels': (8, 8),
  'kernels': (5, 3),
  'strides': (2, 1),
  'paddings': ('SAME',) * 2,
  'groups': (1, 1),
  'pool_layers': (1, 2),
  'bias_layers': (2,),
  'hidden': (12, 10),
  'kernel_init': 'he',
}


def init(model, size=36):
  """Variables of the model's shapes, drawn by numpy, which compiles nothing."""
  x, rng = jnp.zeros((1, size, size, 3)), np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))

  def draw(path, leaf):
    if path[-1].key != 'kernel':
      return jnp.full(leaf.shape, float(path[-1].key in ('scale', 'var')))
    scale = (2 / np.prod(leaf.shape[:-1])) ** 0.5
    return jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32)

  return jax.tree.map_with_path(draw, shapes)


def images(size=36, count=2):
  return jax.random.normal(jax.random.key(1), (count, size, size, 3))


def keys_of(seed, count=2):
  return jax.random.split(jax.random.key(seed), count)


def outputs(model, variables, x, **options):
  """Logits, and {name: output} of all layers."""
  logits, seen = model.apply(
    variables, x, capture_intermediates=True, mutable=True, **options
  )
  layers_seen = seen.pop('intermediates')
  del layers_seen['__call__']
  found = {
    name: layer['__call__'][0] if isinstance(layer, dict) else layer[0]
    for name, layer in layers_seen.items()
  }
  return logits, found, seen


@functools.cache
def loss_and_grads(implementation, dtype):
  model = AlexNet(
    num_classes=5,
    channels=(32, 32, 32),  # enough for Winograd's filtering in each group
    kernels=(7, 5, 3),
    strides=(3, 1, 1),
    paddings=((2, 1), 'SAME', 'SAME'),
    groups=(1, 2, 2),
    pool_layers=(1, 2),
    hidden=(16,),
    bias_layers=(2,),
    lrn_alpha=0.05,
    kernel_init='he',
    dtype=dtype,
    implementation=implementation,
  )
  x = jax.random.normal(jax.random.key(0), (6, 47, 44, 3))

  def loss(params):
    logits = model.apply(
      {'params': params}, x, train=True, dropout_keys=keys_of(2, 6)
    )
    return jnp.square(logits - 1).mean()

  params = jax.jit(model.init)(jax.random.key(1), x)['params']
  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize('implementation', ['cpu', 'gpu'])
@pytest.mark.parametrize(
  'dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)]
)
def test_all_implementations_agree(implementation, dtype):
  tolerance = 2e-5 if dtype == 'float32' else 0.05
  value, grads = loss_and_grads(implementation, dtype)
  expected_value, expected_grads = loss_and_grads('reference', dtype)
  np.testing.assert_allclose(value, expected_value, rtol=tolerance)
  for ours, expected in zip(
    jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True
  ):
    atol = tolerance * float(jnp.abs(expected).max())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def test_the_platform_chooses_the_implementation():
  platforms = ('cpu', 'gpu', 'tpu')
  chosen = [resolve_implementation('auto', platform) for platform in platforms]
  assert chosen == ['cpu', 'gpu', 'reference']
  assert resolve_implementation('reference', 'cpu') == 'reference'


def test_dropout_acts_in_training_only_and_needs_keys():
  model = AlexNet(**SMALL)
  variables, x = init(model), images()
  trained = model.apply(variables, x, train=True, dropout_keys=keys_of(0))
  evaluated = model.apply(variables, x)
  assert (trained != evaluated).any()
  with pytest.raises(ValueError, match=r'dropout of 0\.5 needs dropout_keys'):
    model.apply(variables, x, train=True)
  without = model.clone(dropout=0.0).apply(variables, x, train=True)
  np.testing.assert_array_equal(without, evaluated)


def test_dropout_before_a_layer_drops_its_inputs():
  """As torchvision: the flattened image and the first hidden layer."""
  # The two dropouts see 72 features and 12 before the layers, 12 and 10 after.
  for position, widths in (('before', (72, 12)), ('after', (12, 10))):
    model = AlexNet(**SMALL, dropout_position=position)
    options = {'train': True, 'dropout_keys': keys_of(3, 8)}
    _, found, _ = outputs(model, init(model), images(count=8), **options)
    dropped = [found[f'dropout{number}'] for number in (1, 2)]
    assert [output.shape for output in dropped] == [(8, w) for w in widths]
    assert all((output == 0).any() for output in dropped)


def test_dropout_of_every_layer_draws_units_of_its_own():
  model = AlexNet(**{**SMALL, 'hidden': (400, 400)})
  variables = init(model)
  # No unit is 0 but by dropout.
  variables['params']['dense1']['bias'] += 100.0
  variables['params']['dense2']['kernel'] = jnp.ones((400, 400))
  options = {'train': True, 'dropout_keys': keys_of(0)}
  _, found, _ = outputs(model, variables, images(), **options)
  first, second = found['dropout1'] > 0, found['dropout2'] > 0
  assert 0.4 < (first == second).mean() < 0.6


def test_dropout_may_scale_in_evaluation():
  """As the paper: all units count half in evaluation, none doubly before."""
  scaled = AlexNet(**SMALL)
  papers = scaled.clone(dropout_scaling='evaluation')
  variables, x = init(scaled), images(count=8)
  options = {'train': True, 'dropout_keys': keys_of(3, 8)}
  _, ours, _ = outputs(scaled, variables, x, **options)
  _, theirs, _ = outputs(papers, variables, x, **options)
  # The second sees what the first one let through: half of it.
  for name, factor in (('dropout1', 2), ('dropout2', 4)):
    np.testing.assert_allclose(ours[name], factor * theirs[name], rtol=1e-5)
  logits, full = papers.apply(variables, x), scaled.apply(variables, x)
  np.testing.assert_allclose(4 * logits, full, rtol=1e-4, atol=1e-6)


def test_a_fixed_batch_norm_keeps_and_uses_its_statistics():
  options = {'norm': 'batch', 'norm_layers': (1, 2), 'batch_norm_epsilon': 3.0}
  model = AlexNet(**SMALL, **options, dropout=0.0)
  variables = init(model)
  before = variables['batch_stats']

  def train(*fixed):
    return outputs(model, variables, images(), train=True, fixed_norms=fixed)

  logits, found, seen = train('norm1', 'norm2')
  # At an epsilon of 3 the initial statistics divide by 2.
  np.testing.assert_allclose(
    found['norm1'], np.maximum(found['conv1'], 0) / 2, rtol=1e-5, atol=1e-7
  )
  jax.tree.map(np.testing.assert_array_equal, seen['batch_stats'], before)
  np.testing.assert_array_equal(logits, model.apply(variables, images()))
  _, _, one = train('norm1')
  moved = one['batch_stats']['norm2']['mean']
  assert (moved != before['norm2']['mean']).any()


def test_bfloat16_computes_but_does_not_store():
  model = AlexNet(**SMALL, dtype=jnp.bfloat16)
  variables = init(model)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
  assert dtypes == {jnp.dtype('float32')}
  logits, found, _ = outputs(model, variables, images())
  assert logits.dtype == jnp.float32
  assert {y.dtype for y in found.values()} == {jnp.dtype('bfloat16')}
  wide = AlexNet(**SMALL).apply(variables, images())
  np.testing.assert_allclose(logits, wide, atol=0.1 * float(wide.std()))


def test_width_multiplier_keeps_groups_whole():
  model = AlexNet(width_multiplier=0.3, groups=(1, 2, 1, 2, 2))
  params = jax.eval_shape(lambda: init(model, 224))['params']
  widths = [params[f'conv{i}']['bias'].size for i in range(1, 6)]
  assert widths == [28, 76, 116, 116, 76]  # 0.3 of the paper's, made even
  assert params['dense1']['bias'].size == round(0.3 * 4096)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'norm': 'layer'}, "norm is 'layer'"),  # as `spec.problem` says
    ({'strides': (8, 2)}, 'convolution 2 gives 1 x 1 pixels'),
    ({'lrn_groups': 3}, '8 channels are no 3 equal groups'),
  ],
)
def test_refuses_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    init(AlexNet(**{**SMALL, **fields}))


@pytest.mark.parametrize(
  ('order', 'activation'),
  [('norm-pool-relu', 'tanh'), ('relu-norm-spatial-pool', 'relu')],
)
def test_block_orders_and_activations_are_followed(order, activation):
  """Each order against its operations one by one, on a single convolution."""
  fields = {k: v[:1] if isinstance(v, tuple) else v for k, v in SMALL.items()}
  fields |= {'bias_layers': (), 'norm_layers': (1,), 'lrn_alpha': 0.5}
  fields |= {'block_order': (order,), 'activation': activation}
  model = AlexNet(**fields)
  operations = {
    'relu': {'tanh': jnp.tanh, 'relu': jax.nn.relu}[activation],
    'norm': layers.LocalResponseNorm(alpha=0.5),
    'spatial': layers.SpatialResponseNorm(),
    'pool': layers.MaxPool(3, 2),
  }
  variables, x = init(model, 12), images(12)
  logits, seen, _ = outputs(model, variables, x)

  def dense(layer, y):
    weights = variables['params'][layer]
    return y.reshape(len(x), -1) @ weights['kernel'] + weights['bias'][None]

  def head(names):
    y = seen['conv1']
    for name in names:
      y = operations[name](y)
    return dense('head', operations['relu'](dense('dense1', y)))

  names = order.split('-')
  np.testing.assert_allclose(logits, head(names), rtol=1e-4, atol=1e-5)
  assert not np.allclose(logits, head(names[::-1]), rtol=1e-3)
