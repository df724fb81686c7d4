"""Local response normalization in four conventions, with oracles for each.

All values are the same in every convention but for where its constants stand:

- the paper's text: k + alpha * sum over `size` channels;
- Caffe, PyTorch: k + alpha / size * sum, Caffe's AlexNet with k = 1;
- the 2012 source release: as Caffe, with k = 2, so the sum counts a fifth of
  what the text says;
- TensorFlow: bias + alpha * sum over 2 * depth_radius + 1 channels.

The plain loop is in float64 and its gradient by central differences; none of
the formulas of the product is in it. Tolerances: float32 agrees with float64
within 2e-6 of the largest value (differences by 1e-5 of it), with the other
libraries within 2e-6; bfloat16 within one unit in its last place, 2^-7.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models.layers import LocalResponseNorm

pytestmark = pytest.mark.interop

# Ours; PyTorch's; TensorFlow's; and what the loop multiplies the sum by.
CONVENTIONS = {
  'paper': (
    {'size': 5, 'k': 2.0, 'alpha': 1e-4, 'convention': 'paper'},
    {'size': 5, 'k': 2.0, 'alpha': 5e-4},
    {'depth_radius': 2, 'bias': 2.0, 'alpha': 1e-4},
    1e-4,
  ),
  'caffe and torch': (
    {'size': 5, 'k': 1.0, 'alpha': 1e-4, 'convention': 'caffe'},
    {'size': 5, 'k': 1.0, 'alpha': 1e-4},
    {'depth_radius': 2, 'bias': 1.0, 'alpha': 2e-5},
    2e-5,
  ),
  'source release': (
    {'size': 5, 'k': 2.0, 'alpha': 1e-4, 'convention': 'caffe'},
    {'size': 5, 'k': 2.0, 'alpha': 1e-4},
    {'depth_radius': 2, 'bias': 2.0, 'alpha': 2e-5},
    2e-5,
  ),
  'tensorflow': (
    {'size': 7, 'k': 1.0, 'alpha': 0.01, 'convention': 'paper'},
    {'size': 7, 'k': 1.0, 'alpha': 0.07},
    {'depth_radius': 3, 'bias': 1.0, 'alpha': 0.01},
    0.01,
  ),
}
BETA = 0.75
TOLERANCE = {'float32': 2e-6, 'bfloat16': 2**-7}


def plain_loop(x, size, k, scale):
  """One number at a time, float64, of an array [batch, y, x, channels]."""
  out = np.empty(x.shape, np.float64)
  *positions, channels = x.shape
  for index in np.ndindex(*positions):
    for c in range(channels):
      total = 0.0
      for j in range(c - size // 2, c + size // 2 + 1):
        if 0 <= j < channels:
          total += x[(*index, j)] ** 2
      out[(*index, c)] = x[(*index, c)] / (k + scale * total) ** BETA
  return out


def differences(x, cotangent, size, k, scale, step=1e-4):
  """Gradient of sum(cotangent * plain_loop(x)) by central differences."""
  out = np.empty_like(x)
  for index in np.ndindex(*x.shape):
    sums = []
    for sign in (1, -1):
      moved = x.copy()
      moved[index] += sign * step
      sums.append(np.sum(cotangent * plain_loop(moved, size, k, scale)))
    out[index] = (sums[0] - sums[1]) / (2 * step)
  return out


def arrays(dtype, shape):
  """Activations and a cotangent, both exact in `dtype`; as float32."""
  # Large enough for the sum to count beside k.
  x = 30 * jax.random.normal(jax.random.key(0), shape)
  cotangent = jax.random.normal(jax.random.key(1), shape)
  return tuple(np.asarray(a.astype(dtype), np.float32) for a in (x, cotangent))


def ours(x, cotangent, dtype, custom_vjp, options):
  """(activations, gradient) as float32."""
  normalize = LocalResponseNorm(beta=BETA, custom_vjp=custom_vjp, **options)
  y, pull = jax.vjp(normalize, jnp.asarray(x, dtype))
  [gradient] = pull(jnp.asarray(cotangent, dtype))
  assert y.dtype == gradient.dtype == dtype
  return np.asarray(y, np.float32), np.asarray(gradient, np.float32)


def assert_near(actual, wanted, dtype, tolerance=None):
  tolerance = tolerance or TOLERANCE[dtype]
  np.testing.assert_allclose(
    actual, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max()
  )


gradients = pytest.mark.parametrize('custom_vjp', [False, True])
dtypes = pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
conventions = pytest.mark.parametrize('name', CONVENTIONS)


@gradients
@dtypes
@conventions
def test_equals_the_plain_loop(name, dtype, custom_vjp):
  options, _, _, scale = CONVENTIONS[name]
  x, cotangent = arrays(dtype, (2, 2, 1, 9))
  loop = (options['size'], options['k'], scale)
  x64 = x.astype(np.float64)
  y, gradient = ours(x, cotangent, dtype, custom_vjp, options)
  assert_near(y, plain_loop(x64, *loop), dtype)
  differences_error = 1e-5 if dtype == 'float32' else None
  wanted = differences(x64, cotangent, *loop)
  assert_near(gradient, wanted, dtype, differences_error)
  # The other conventions are not within the tolerance.
  for other, (others, _, _, factor) in CONVENTIONS.items():
    if other != name and dtype == 'float32':
      loop = plain_loop(x64, others['size'], others['k'], factor)
      with pytest.raises(AssertionError):
        assert_near(y, loop, dtype)


def of_torch(x, cotangent, options):
  """(activations, gradient) of arrays [batch, y, x, channels]."""
  torch = pytest.importorskip('torch')
  tensor = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
  out = torch.nn.LocalResponseNorm(beta=BETA, **options)(tensor)
  out.backward(torch.from_numpy(cotangent.transpose(0, 3, 1, 2).copy()))
  arrays = out.detach(), tensor.grad
  return tuple(array.numpy().transpose(0, 2, 3, 1) for array in arrays)


def of_tensorflow(x, cotangent, options):
  tf = pytest.importorskip('tensorflow')
  tensor = tf.constant(x)
  with tf.GradientTape() as tape:
    tape.watch(tensor)
    out = tf.nn.local_response_normalization(tensor, beta=BETA, **options)
  gradient = tape.gradient(out, tensor, output_gradients=tf.constant(cotangent))
  return out.numpy(), gradient.numpy()


@gradients
@dtypes
@conventions
@pytest.mark.parametrize('library', [of_torch, of_tensorflow])
def test_equals_other_libraries(library, name, dtype, custom_vjp):
  """In float32, of the same values: PyTorch rounds in between in bfloat16."""
  options, *others, _ = CONVENTIONS[name]
  theirs = others[library is of_tensorflow]
  x, cotangent = arrays(dtype, (2, 5, 4, 12))
  found = ours(x, cotangent, dtype, custom_vjp, options)
  for actual, wanted in zip(found, library(x, cotangent, theirs), strict=True):
    assert_near(actual, wanted, dtype)
