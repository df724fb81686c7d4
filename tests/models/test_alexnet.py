import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.evaluation.summary import layer_table
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.normalization import local_response_norm
from alexnet_jax.models.normalization import spatial_response_norm
from alexnet_jax.models.pooling import max_pool

TOWERS = (1, 2, 1, 2, 2)
# A network that a test can compute: 36 pixels, a few channels.
SMALL = {
  'num_classes': 7,
  'channels': (8, 8, 8, 8, 8),
  'kernels': (5, 3, 3, 3, 3),
  'strides': (2, 1, 1, 1, 1),
  'paddings': ('SAME',) * 5,
  'hidden': (12, 10),
}


def init(model, size=36):
  return model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))


def images(size=36, count=2):
  return jax.random.normal(jax.random.key(1), (count, size, size, 3))


@pytest.mark.parametrize(
  ('groups', 'parameters', 'gmac'),
  [((1, 1, 1, 1, 1), 62_378_344, 1.1353), (TOWERS, 60_965_224, 0.7244)],
)
def test_the_papers_network(groups, parameters, gmac):
  params, rows = layer_table(AlexNet(groups=groups), (224, 224, 3))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
  assert [output for _, output, _ in rows] == [
    (55, 55, 96),
    (55, 55, 96),  # normalized
    (27, 27, 96),
    (27, 27, 256),
    (27, 27, 256),  # normalized
    (13, 13, 256),
    (13, 13, 384),
    (13, 13, 384),
    (13, 13, 256),
    (6, 6, 256),
    (4096,),
    (4096,),
    (1000,),
  ]
  assert params['dense1']['kernel'].shape == (9216, 4096)
  assert sum(macs for *_, macs in rows) / 1e9 == pytest.approx(gmac, abs=5e-5)


def test_the_table_is_in_order_of_execution():
  fields = {**SMALL, 'norm_hidden': (2,)}
  names = {}
  for norm in ('lrn', 'batch'):
    _, rows = layer_table(AlexNet(**fields, norm=norm), (36, 36, 3))
    names[norm] = ' '.join(name for name, *_ in rows)
  assert names['lrn'] == (
    'conv1 lrn1 pool1 conv2 lrn2 pool2 conv3 conv4 conv5 pool5 dense1 dense2'
    ' dense_norm2 head'
  )
  assert names['batch'] == names['lrn'].replace('lrn', 'norm')


def test_a_227_pixel_image_needs_no_padding():
  model = AlexNet(paddings=('VALID', 'SAME', 'SAME', 'SAME', 'SAME'))
  _, rows = layer_table(model, (227, 227, 3))
  assert rows[0][1] == (55, 55, 96)


def test_forward_equals_a_numpy_network():
  """Convolution, ReLU, LRN, pooling and dense layers, one number at a time."""
  model = AlexNet(
    num_classes=3,
    channels=(4, 6),
    kernels=(3, 3),
    strides=(2, 1),
    paddings=((1, 0), 1),
    groups=(1, 2),
    pool_layers=(1,),
    norm_layers=(1,),
    hidden=(5,),
    lrn_alpha=0.3,
    kernel_init='he',
    bias_layers=(2,),
  )
  x = np.asarray(images(10, 1), np.float64)
  variables = init(model, 10)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables['params'])
  assert (p['conv2']['bias'] == 1).all()

  def conv(x, layer, stride, before, after, groups):
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    kernel = layer['kernel']
    size, _, depth, width = kernel.shape
    out = (x.shape[1] - size) // stride + 1
    y = np.zeros((1, out, out, width))
    for r, c, o in np.ndindex(out, out, width):
      group = o // (width // groups)
      window = x[
        0,
        r * stride : r * stride + size,
        c * stride : c * stride + size,
        group * depth : (group + 1) * depth,
      ]
      y[0, r, c, o] = (window * kernel[..., o]).sum() + layer['bias'][o]
    return np.maximum(y, 0)

  y = conv(x, p['conv1'], 2, 1, 0, 1)
  padded = np.pad(y**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
  y /= (2 + 0.3 * sum(padded[..., i : i + 4] for i in range(5))) ** 0.75
  pooled = np.zeros((1, 2, 2, 4))
  for r, c in np.ndindex(2, 2):
    pooled[0, r, c] = y[0, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max((0, 1))
  y = conv(pooled, p['conv2'], 1, 1, 1, 2).reshape(1, -1)
  y = np.maximum(y @ p['dense1']['kernel'] + p['dense1']['bias'], 0)
  y = y @ p['head']['kernel'] + p['head']['bias']
  np.testing.assert_allclose(
    model.apply(variables, jnp.asarray(x, jnp.float32)), y, rtol=1e-4, atol=1e-6
  )


@pytest.mark.slow
def test_groups_keep_the_towers_apart():
  """No gradient from the first tower of conv2 to the second half of conv1."""
  model = AlexNet(**SMALL, groups=TOWERS, norm='none', kernel_init='he')
  variables = init(model)

  def first_tower(params):
    _, seen = model.apply(
      {'params': params}, images(), capture_intermediates=True, mutable=True
    )
    return seen['intermediates']['conv2']['__call__'][0][..., :4].sum()

  grads = jax.grad(first_tower)(variables['params'])['conv1']['kernel']
  assert jnp.abs(grads[..., :4]).max() > 0
  assert jnp.abs(grads[..., 4:]).max() == 0


def test_biases_start_as_in_the_paper():
  params = init(AlexNet(**SMALL))['params']
  starts = {name: float(layer['bias'][0]) for name, layer in params.items()}
  assert starts == {
    'conv1': 0,
    'conv2': 1,
    'conv3': 0,
    'conv4': 1,
    'conv5': 1,
    'dense1': 1,
    'dense2': 1,
    'head': 0,
  }


def keys_of(seed, count=2):
  return jax.random.split(jax.random.key(seed), count)


def test_dropout_acts_in_training_only():
  model = AlexNet(**SMALL, kernel_init='he', dropout=0.5)
  variables = init(model)

  def logits(train, seed):
    return model.apply(
      variables, images(), train=train, dropout_keys=keys_of(seed)
    )

  assert (logits(False, 0) == logits(False, 1)).all()
  assert (logits(False, 0) == model.apply(variables, images())).all()
  assert (logits(True, 0) == logits(True, 0)).all()
  assert (logits(True, 0) != logits(True, 1)).any()


def test_training_with_dropout_needs_keys():
  model = AlexNet(**SMALL, dropout=0.5)
  variables = init(model)
  with pytest.raises(ValueError, match=r'dropout of 0\.5 needs dropout_keys'):
    model.apply(variables, images(), train=True)
  without = AlexNet(**SMALL, dropout=0.0)
  np.testing.assert_array_equal(
    without.apply(variables, images(), train=True),
    model.apply(variables, images()),
  )


def test_batch_norm_normalises_in_training_and_keeps_statistics():
  model = AlexNet(
    **SMALL, norm='batch', norm_layers=(1,), norm_before_relu=True, dropout=0.0
  )
  variables = init(model)
  assert set(variables['batch_stats']) == {'norm1'}
  _, seen = model.apply(
    variables, images(), train=True, capture_intermediates=True, mutable=True
  )
  normalized = seen['intermediates']['norm1']['__call__'][0]
  np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-5)
  # The statistics start at 0 and keep 0.9 of themselves.
  inputs = seen['intermediates']['conv1']['__call__'][0]
  np.testing.assert_allclose(
    seen['batch_stats']['norm1']['mean'],
    0.1 * inputs.mean((0, 1, 2)),
    rtol=1e-4,
    atol=1e-7,
  )


def test_bfloat16_computes_but_does_not_store():
  model = AlexNet(**SMALL, dtype=jnp.bfloat16, kernel_init='he')
  variables = init(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
    jnp.dtype('float32')
  }
  logits, seen = model.apply(
    variables, images(), capture_intermediates=True, mutable=True
  )
  assert logits.dtype == jnp.float32
  assert seen['intermediates']['conv1']['__call__'][0].dtype == jnp.bfloat16
  plain = AlexNet(**SMALL, kernel_init='he').apply(variables, images())
  np.testing.assert_allclose(logits, plain, atol=0.1 * float(plain.std()))


def test_width_multiplier_keeps_groups_whole():
  model = AlexNet(width_multiplier=0.3, groups=TOWERS)
  params, _ = layer_table(model, (224, 224, 3))
  widths = [params[f'conv{i}']['bias'].size for i in range(1, 6)]
  assert widths == [28, 76, 116, 116, 76]  # 0.3 of the paper's, made even
  assert params['dense1']['bias'].size == round(0.3 * 4096)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'strides': (2, 1)}, '2 entries for 5'),
    ({'norm': 'layer'}, "norm is 'layer'"),
    ({'dropout_position': 'in'}, "dropout_position is 'in'"),
    ({'dropout_scaling': 'never'}, "dropout_scaling is 'never'"),
    ({'block_order': ('relu-norm',)}, '1 entries for 5'),
    ({'block_order': ('relu-norm', *('',) * 4)}, 'relu, norm, pool once'),
    ({'block_order': ('relu-lrn-pool', *('',) * 4)}, "'lrn' is not one of"),
    (
      {'block_order': (*('',) * 4, 'pool-spatial-spatial-relu')},
      'more than once',
    ),
    ({'strides': (8, 2, 1, 1, 1)}, 'convolution 2 gives 1 x 1 pixels'),
  ],
)
def test_refuses_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    init(AlexNet(**{**SMALL, **fields}))


def test_dropout_before_a_layer_drops_its_inputs():
  """As torchvision: the flattened image and the first hidden layer."""

  def dropped(place):
    model = AlexNet(**SMALL, kernel_init='he', dropout_position=place)
    _, seen = model.apply(
      init(model),
      images(count=8),
      train=True,
      dropout_keys=keys_of(3, 8),
      mutable=True,
    )
    return [seen['intermediates'][f'dropout{n}'][0] for n in (1, 2)]

  # The two dropouts see 8 features and 12 before the layers, 12 and 10 after.
  for place, widths in (('before', (8, 12)), ('after', (12, 10))):
    outputs = dropped(place)
    assert [output.shape for output in outputs] == [(8, w) for w in widths]
    assert all((output == 0).any() for output in outputs)


def test_dropout_of_every_layer_draws_units_of_its_own():
  model = AlexNet(**{**SMALL, 'hidden': (400, 400)}, kernel_init='he')
  variables = init(model)
  variables['params']['dense2'] = {
    'kernel': jnp.ones((400, 400)),  # no unit is 0 but by dropout
    'bias': jnp.ones(400),
  }
  variables['params']['dense1']['bias'] = jnp.full(400, 100.0)
  _, seen = model.apply(
    variables,
    images(),
    train=True,
    dropout_keys=keys_of(0),
    mutable=['intermediates'],
  )
  first, second = (seen['intermediates'][f'dropout{n}'][0] > 0 for n in (1, 2))
  for kept in (first, second):
    assert 0.4 < kept.mean() < 0.6
  assert 0.4 < (first == second).mean() < 0.6


def test_batch_norm_of_a_hidden_layer():
  model = AlexNet(
    **SMALL, norm='none', norm_hidden=(2,), norm_before_relu=True, dropout=0.0
  )
  variables = init(model)
  assert set(variables['batch_stats']) == {'dense_norm2'}
  _, seen = model.apply(
    variables, images(), train=True, capture_intermediates=True, mutable=True
  )
  normalized = seen['intermediates']['dense_norm2']['__call__'][0]
  np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-5)


def test_a_fixed_batch_norm_keeps_and_uses_its_statistics():
  model = AlexNet(**SMALL, norm='batch', norm_layers=(1, 2), dropout=0.0)
  variables = init(model)
  logits, seen = model.apply(
    variables,
    images(),
    train=True,
    fixed_norms=('norm1', 'norm2'),
    mutable=True,
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    seen['batch_stats'],
    variables['batch_stats'],
  )
  np.testing.assert_array_equal(logits, model.apply(variables, images()))
  _, one = model.apply(
    variables, images(), train=True, fixed_norms=('norm1',), mutable=True
  )
  moved = one['batch_stats']['norm2']['mean']
  assert (moved != variables['batch_stats']['norm2']['mean']).any()


def test_epsilon_of_batch_norm():
  """At an epsilon of 3 the initial statistics divide by 2."""
  model = AlexNet(
    **SMALL, norm='batch', norm_layers=(1,), batch_norm_epsilon=3.0
  )
  _, seen = model.apply(
    init(model), images(), capture_intermediates=True, mutable=True
  )
  convolution = seen['intermediates']['conv1']['__call__'][0]
  normalized = seen['intermediates']['norm1']['__call__'][0]
  np.testing.assert_allclose(
    normalized, np.maximum(convolution, 0) / 2, rtol=1e-5, atol=1e-7
  )


def test_orders_are_followed():
  """Each order against its operations one by one, on a single convolution."""
  fields = {
    **SMALL,
    'channels': (8,),
    'kernels': (3,),
    'strides': (1,),
    'paddings': (1,),
    'groups': (1,),
    'pool_layers': (1,),
    'norm_layers': (1,),
    'bias_layers': (),
    'lrn_alpha': 0.5,
    'kernel_init': 'he',
  }
  operations = {
    'relu': lambda x: jnp.maximum(x, 0),
    'norm': lambda x: local_response_norm(x, alpha=0.5),
    'spatial': lambda x: spatial_response_norm(x, alpha=3.0),
    'pool': lambda x: max_pool(x, 3, 2, 'plain'),
  }
  x = images()
  found = {}
  for order in (
    *('relu-norm-pool', 'norm-relu-pool', 'norm-pool-relu', 'relu-pool-norm'),
    *('relu-norm-spatial-pool', 'spatial-relu-norm-pool'),
  ):
    spatial = {'spatial_alpha': 3.0} if 'spatial' in order else {}
    model = AlexNet(**fields, **spatial, block_order=(order,))
    variables = init(model)
    logits, seen = model.apply(
      variables, x, capture_intermediates=True, mutable=True
    )
    expected = seen['intermediates']['conv1']['__call__'][0]
    for name in order.split('-'):
      expected = operations[name](expected)
    hidden = expected.reshape(len(x), -1)
    for name in ('dense1', 'dense2', 'head'):
      layer = variables['params'][name]
      hidden = hidden @ layer['kernel'] + layer['bias'][None]
      hidden = jnp.maximum(hidden, 0) if name != 'head' else hidden
    np.testing.assert_allclose(logits, hidden, rtol=1e-4, atol=1e-5)
    found[order] = np.asarray(logits)
  # ReLU and maximum commute; nothing else here does.
  np.testing.assert_allclose(
    found.pop('norm-relu-pool'), found['norm-pool-relu'], rtol=1e-4, atol=1e-5
  )
  for one, other in itertools.combinations(found.values(), 2):
    assert not np.allclose(one, other, rtol=1e-3)


def test_dropout_may_scale_in_evaluation():
  """As the paper: all units count half in evaluation, none doubly before."""
  scaled = AlexNet(**SMALL, kernel_init='he', bias_init=0.0)
  papers = scaled.clone(dropout_scaling='evaluation')
  variables, x = init(scaled), images(count=8)
  options = {'train': True, 'dropout_keys': keys_of(3, 8), 'mutable': True}
  (_, ours), (_, theirs) = (
    model.apply(variables, x, **options) for model in (scaled, papers)
  )
  for name in ('dropout1', 'dropout2'):
    a, b = (seen['intermediates'][name][0] for seen in (ours, theirs))
    # The second sees what the first one let through: half of it, too.
    factor = 2 if name == 'dropout1' else 4
    np.testing.assert_allclose(a, factor * b, rtol=1e-5)
  hidden = variables['params']['dense1']['bias']
  assert not hidden.any()  # as the factors above need
  logits, full = (np.asarray(m.apply(variables, x)) for m in (papers, scaled))
  assert not variables['params']['head']['bias'].any()
  np.testing.assert_allclose(4 * logits, full, rtol=1e-4, atol=1e-6)
