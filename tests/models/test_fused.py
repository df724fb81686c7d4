"""The kernels run as plain operations here; `gpu_plan` compiles them."""

import functools
import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import fused
from alexnet_jax.models.normalization import local_response_norm
from tests.some_slow import some_slow

STRONG = {'k': 1.5, 'alpha': 0.3, 'beta': 0.75}  # neighbors count


def activations(shape, dtype=jnp.float32, seed=0):
  """Multiples of 1/2, so that many are equal."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(np.round(rng.normal(size=shape) * 4) / 2, dtype)


def plain(x, *, relu, lrn, window, stride):
  if relu == 'before':
    x = nn.relu(x)
  if lrn:
    x = local_response_norm(x, **lrn)
  if relu == 'after':
    x = nn.relu(x)
  return nn.max_pool(x, (window, window), (stride, stride))


def kernel(x, bias=None, *, relu, lrn, window, stride):
  options = {'pool_size': window, 'pool_stride': stride, 'interpret': True}
  if not lrn:
    return fused.relu_max_pool(x, bias, relu=relu != 'none', **options)
  lrn = {{'size': 'lrn_size'}.get(name, name): lrn[name] for name in lrn}
  return fused.lrn_max_pool(x, bias, relu=relu, **lrn, **options)


def values_and_gradients(function, gradient_seed, *arguments):
  shape = jax.eval_shape(function, *arguments)
  rng = np.random.default_rng(gradient_seed)
  gradient = jnp.asarray(rng.normal(size=shape.shape), shape.dtype)

  def compute(gradient, *arguments):
    y, pull = jax.vjp(function, *arguments)
    return y, *pull(gradient)

  results = jax.jit(compute)(gradient, *arguments)
  return [np.asarray(each, np.float64) for each in results]


# (relu, channels of a sum, window, stride, shape, dtype)
CASES = {
  'after the first layer': ('before', 5, 3, 2, (1, 19, 13, 96), jnp.bfloat16),
  'after the fifth layer': ('after', 0, 3, 2, (2, 13, 13, 34), jnp.bfloat16),
  'normalized before': ('after', 5, 3, 2, (2, 8, 9, 6), jnp.float32),
  'no relu': ('none', 3, 2, 2, (2, 8, 9, 10), jnp.bfloat16),
  'no relu and no norm': ('none', 0, 3, 2, (2, 8, 9, 10), jnp.float32),
  'no pooling': ('before', 5, 1, 1, (2, 5, 4, 6), jnp.bfloat16),
  'an odd number of channels': ('before', 3, 2, 2, (2, 8, 9, 7), jnp.bfloat16),
  'one channel': ('before', 3, 2, 2, (2, 8, 9, 1), jnp.float32),
  'fewer channels than neighbors': (
    *('before', 9, 1, 2, (2, 8, 9, 2), jnp.bfloat16),
  ),
  'pixels between windows': ('before', 3, 1, 2, (2, 9, 10, 6), jnp.float32),
  'pixels beyond the windows': ('after', 0, 3, 3, (2, 11, 7, 6), jnp.bfloat16),
  'windows that overlap a lot': ('after', 0, 3, 1, (1, 7, 8, 4), jnp.bfloat16),
  'windows of many cells': ('after', 0, 5, 2, (1, 10, 11, 4), jnp.float32),
}


QUICK = ('no pooling', 'one channel', 'pixels between windows')


@pytest.mark.parametrize('case', some_slow(CASES, QUICK))
def test_values_and_gradients_are_those_of_the_plain_form(case):
  relu, size, window, stride, shape, dtype = CASES[case]
  lrn = {'size': size, **STRONG} if size else None
  options = {'relu': relu, 'lrn': lrn, 'window': window, 'stride': stride}
  x = activations(shape, dtype)
  y, dx = values_and_gradients(functools.partial(kernel, **options), 1, x)
  want_y, want_dx = values_and_gradients(
    functools.partial(plain, **options), 1, x
  )
  narrow = dtype == jnp.bfloat16
  # A value of bfloat16 is right to the last bit; the plain gradient is rounded
  # several times on its way.
  np.testing.assert_allclose(y, want_y, rtol=0 if narrow else 1e-6)
  np.testing.assert_allclose(
    dx, want_dx, rtol=2e-2 if narrow else 1e-5, atol=2e-2 if narrow else 1e-6
  )


@pytest.mark.parametrize(
  'lrn',
  [
    {'size': 5},
    {'size': 7, **STRONG, 'beta': 1.25, 'convention': 'caffe'},
  ],
)
def test_other_constants(lrn):
  options = {'relu': 'before', 'lrn': lrn, 'window': 1, 'stride': 1}
  x = activations((2, 7, 8, 12)) * 3
  for ours, plains in zip(
    values_and_gradients(functools.partial(kernel, **options), 1, x),
    values_and_gradients(functools.partial(plain, **options), 1, x),
    strict=True,
  ):
    np.testing.assert_allclose(ours, plains, rtol=1e-5, atol=1e-6)


def loops(x, gradient, *, size, k, alpha, beta, window, stride):
  """Values and gradient of relu, norm and pooling, one number at a time."""
  a = np.maximum(x, 0)
  channels = x.shape[-1]
  near = [
    [j for j in range(channels) if abs(j - c) <= size // 2]
    for c in range(channels)
  ]
  b, db, da = np.zeros_like(a), np.zeros_like(a), np.zeros_like(a)
  bracket = np.zeros_like(a)
  for *pixel, c in np.ndindex(a.shape):
    total = sum(a[(*pixel, j)] ** 2 for j in near[c])
    bracket[(*pixel, c)] = k + alpha * total
    b[(*pixel, c)] = a[(*pixel, c)] / bracket[(*pixel, c)] ** beta
  y = np.zeros_like(gradient)
  for n, row, column, c in np.ndindex(y.shape):
    places = [
      (n, row * stride + i, column * stride + j, c)
      for i, j in itertools.product(range(window), repeat=2)
    ]
    best = max(places, key=lambda place: b[place])  # the first one
    y[n, row, column, c] = b[best]
    db[best] += gradient[n, row, column, c]
  for *pixel, c in np.ndindex(a.shape):  # b[c] changes with its neighbors
    d = bracket[(*pixel, c)]
    da[(*pixel, c)] += db[(*pixel, c)] * d**-beta
    for j in near[c]:
      slope = -beta * d ** (-beta - 1) * 2 * alpha * a[(*pixel, j)]
      da[(*pixel, j)] += db[(*pixel, c)] * a[(*pixel, c)] * slope
  return y, da * (x > 0)


def test_numbers_of_a_loop():
  x = activations((1, 6, 7, 6))
  options = {'window': 2, 'stride': 1}
  lrn = {'size': 3, **STRONG}
  y, dx = values_and_gradients(
    functools.partial(kernel, relu='before', lrn=lrn, **options), 1, x
  )
  gradient = np.random.default_rng(1).normal(size=y.shape)
  want_y, want_dx = loops(
    np.asarray(x, np.float64), gradient, size=3, **STRONG, **options
  )
  np.testing.assert_allclose(y, want_y, rtol=1e-6)
  np.testing.assert_allclose(dx, want_dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('relu', 'size'),
  some_slow([('after', 0), ('after', 5), ('before', 5)], [('after', 5)]),
)
def test_the_first_of_equals_gets_the_gradient(relu, size):
  lrn = {'size': size, **STRONG} if size else None
  options = {'relu': relu, 'lrn': lrn, 'window': 3, 'stride': 2}
  x = jnp.ones((1, 5, 5, 4), jnp.bfloat16)
  _, dx = values_and_gradients(functools.partial(kernel, **options), 1, x)
  chosen = np.zeros((5, 5), bool)
  chosen[:4:2, :4:2] = True  # where windows start
  np.testing.assert_array_equal((dx != 0).any((0, 3)), chosen)
  np.testing.assert_array_equal((dx != 0).all((0, 3)), chosen)


@pytest.mark.slow
def test_nothing_positive_gives_nothing_back():
  x = -jnp.ones((1, 5, 5, 4)).at[:, 2].set(0.0)
  for lrn, relu in ((None, 'after'), ({'size': 3}, 'after'), ({}, 'before')):
    y, dx = values_and_gradients(
      functools.partial(kernel, relu=relu, lrn=lrn, window=3, stride=2), 1, x
    )
    assert not y.any()
    assert not dx.any()


@pytest.mark.parametrize(
  ('dtype', 'size', 'channels'),
  some_slow(
    [(jnp.bfloat16, 3, 6), (jnp.bfloat16, 0, 7), (jnp.float32, 3, 3)],
    quick=[(jnp.float32, 3, 3)],
  ),
)
def test_the_bias_is_added_and_its_gradient_a_sum(dtype, size, channels):
  lrn = {'size': size, **STRONG} if size else None
  options = {'window': 2, 'stride': 2, 'lrn': lrn}
  options['relu'] = 'before' if size else 'after'
  x = activations((3, 20, 9, channels), dtype)
  bias = jnp.asarray(np.random.default_rng(2).normal(size=channels))
  bias = bias.astype(jnp.float32)

  def added(x, bias):
    return kernel(x + bias.astype(dtype)[None, None, None], **options)

  y, dx, dbias = values_and_gradients(
    lambda x, bias: kernel(x, bias, **options), 1, x, bias
  )
  want_y, want_dx, _ = values_and_gradients(added, 1, x, bias)
  narrow = dtype == jnp.bfloat16
  np.testing.assert_allclose(y, want_y, rtol=0 if narrow else 1e-6)
  np.testing.assert_allclose(dx, want_dx, rtol=1e-2 if narrow else 1e-5)
  np.testing.assert_allclose(
    dbias, dx.sum((0, 1, 2)), rtol=1e-2 if narrow else 1e-5, atol=2e-2
  )


def test_what_is_not_a_number_stays_so():
  x = activations((1, 7, 7, 4)).at[0, 3, 3, 1].set(jnp.nan)
  for lrn, relu, channels in (
    (None, 'after', [1]),
    ({'size': 3}, 'before', [0, 1, 2]),
  ):
    y = kernel(x, relu=relu, lrn=lrn, window=3, stride=2)
    np.testing.assert_array_equal(
      np.flatnonzero(np.isnan(y).any((0, 1, 2))), channels
    )


def test_the_gradient_keeps_the_input_and_bytes():
  x = activations((1, 7, 7, 4), jnp.bfloat16)

  def sizes(size):
    lrn = {'size': size} if size else None
    _, pull = jax.vjp(
      functools.partial(kernel, relu='after', lrn=lrn, window=3, stride=2), x
    )
    return sorted(leaf.nbytes for leaf in jax.tree.leaves(pull) if leaf.size)

  assert sizes(5) == [3 * 3 * 4, x.nbytes]
  assert sizes(0) == [3 * 3 * 4]


def test_relu():
  x = jnp.array([-1.0, -0.0, 0.0, 2.0])
  y, pull = jax.vjp(fused.relu, x)
  np.testing.assert_array_equal(y, [0, 0, 0, 2])
  np.testing.assert_array_equal(pull(jnp.ones(4))[0], [0, 0, 0, 1])
  np.testing.assert_array_equal(jax.vmap(jax.grad(fused.relu))(x), [0, 0, 0, 1])


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({}, ''),
    ({'shape': (2, 9, 9, 7), 'dtype': jnp.bfloat16}, ''),
    ({'dtype': jnp.float16}, 'float16'),
    ({'lrn_size': 11}, 'sums of 11 channels'),
    ({'pool_size': 6}, 'windows of 6 pixels'),
    ({'shape': (2, 2, 9, 96)}, '2 x 9 pixels'),
    ({'shape': (2**13, 55, 55, 96)}, '64 bits'),
  ],
)
def test_obstacles(changes, words):
  arguments = {'shape': (2, 55, 55, 96), 'dtype': jnp.float32, **changes}
  found = fused.obstacle(**arguments)
  assert (words in found) if words else not found


def test_pallas_without_triton_is_an_obstacle(monkeypatch):
  monkeypatch.setattr(fused.importlib.util, 'find_spec', lambda name: None)
  assert 'Triton' in fused.obstacle((2, 55, 55, 96), jnp.float32)


@pytest.mark.parametrize(
  ('function', 'changes', 'words'),
  [
    (fused.lrn_max_pool, {'lrn_size': 4}, 'odd'),
    (fused.lrn_max_pool, {'convention': 'mine'}, "'mine'"),
    (fused.lrn_max_pool, {'relu': 'behind'}, "'behind'"),
    (fused.lrn_max_pool, {'pool_stride': 0}, 'distance of 0'),
    (fused.relu_max_pool, {'pool_size': 6}, 'windows of 6 pixels'),
    (fused.relu_max_pool, {'bias': jnp.zeros(3)}, r'\(3,\), not \(4,\)'),
  ],
)
def test_bad_arguments_are_refused(function, changes, words):
  with pytest.raises(ValueError, match=words):
    function(jnp.zeros((1, 9, 9, 4)), **changes)
