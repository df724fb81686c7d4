"""Local response normalization in four conventions, with oracles for each.

All values are the same in every convention but for where its constants stand:

- the paper's text: k + alpha * sum over `size` channels;
- Caffe, PyTorch: k + alpha / size * sum, Caffe's AlexNet with k = 1;
- the 2012 source release: as Caffe, with k = 2, so the sum counts a fifth of
  what the text says;
- TensorFlow: bias + alpha * sum over 2 * depth_radius + 1 channels.

Tolerances: float32 agrees with the other libraries within 2e-6 of the largest
value; bfloat16 within one unit in its last place, 2^-7.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models.layers import LocalResponseNorm

pytestmark = pytest.mark.interop

# Ours; PyTorch's; TensorFlow's.
CONVENTIONS = {
  'paper': (
    {'size': 5, 'k': 2.0, 'alpha': 1e-4, 'convention': 'paper'},
    {'size': 5, 'k': 2.0, 'alpha': 5e-4},
    {'depth_radius': 2, 'bias': 2.0, 'alpha': 1e-4},
  ),
  'caffe and torch': (
    {'size': 5, 'k': 1.0, 'alpha': 1e-4, 'convention': 'caffe'},
    {'size': 5, 'k': 1.0, 'alpha': 1e-4},
    {'depth_radius': 2, 'bias': 1.0, 'alpha': 2e-5},
  ),
  'source release': (
    {'size': 5, 'k': 2.0, 'alpha': 1e-4, 'convention': 'caffe'},
    {'size': 5, 'k': 2.0, 'alpha': 1e-4},
    {'depth_radius': 2, 'bias': 2.0, 'alpha': 2e-5},
  ),
  'tensorflow': (
    {'size': 7, 'k': 1.0, 'alpha': 0.01, 'convention': 'paper'},
    {'size': 7, 'k': 1.0, 'alpha': 0.07},
    {'depth_radius': 3, 'bias': 1.0, 'alpha': 0.01},
  ),
}
BETA = 0.75
TOLERANCE = {'float32': 2e-6, 'bfloat16': 2**-7}


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


@pytest.mark.parametrize('custom_vjp', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', CONVENTIONS)
@pytest.mark.parametrize('library', [of_torch, of_tensorflow])
def test_equals_other_libraries(library, name, dtype, custom_vjp):
  """In float32, of the same values: PyTorch rounds in between in bfloat16."""
  options, *others = CONVENTIONS[name]
  theirs = others[library is of_tensorflow]
  x, cotangent = arrays(dtype, (2, 5, 4, 12))
  found = ours(x, cotangent, dtype, custom_vjp, options)
  for actual, wanted in zip(found, library(x, cotangent, theirs), strict=True):
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
      actual, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max()
    )
