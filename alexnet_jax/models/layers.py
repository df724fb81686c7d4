"""Layers and initialisers that AlexNet needs and flax does not have."""

import jax
from jax import lax
import jax.numpy as jnp

LRN_CONVENTIONS = ('paper', 'caffe')
KERNEL_INITS = ('paper', 'source_release', 'caffe', 'he', 'glorot', 'lecun')

# Standard deviations of the normal initialisers by (role, number of the layer,
# from 1); a role alone is the default of that role.
_NORMAL_STDDEV = {
  'paper': {'conv': 0.01, 'dense': 0.01, 'head': 0.01},
  'source_release': {
    'conv': 0.01,
    ('conv', 3): 0.03,
    ('conv', 4): 0.03,
    ('conv', 5): 0.03,
    'dense': 0.01,
    'head': 0.01,
  },
  'caffe': {'conv': 0.01, 'dense': 0.005, 'head': 0.01},
}


def kernel_initializer(name: str, role: str, number: int):
  """Initialiser of the kernel of one layer.

  Args:
    name: one of `KERNEL_INITS`. `paper` is N(0, 0.01) everywhere (Krizhevsky et
      al. 2012, section 5); `source_release` the same with 0.03 in the third to
      fifth convolution; `caffe` the same with 0.005 in the hidden dense layers;
      `he`, `glorot` and `lecun` scale with the layer's fan.
    role: `conv`, `dense` (hidden) or `head` (logits).
    number: position of the layer among those of its role, from 1.

  Returns:
    A function (key, shape, dtype) -> array.

  Raises:
    ValueError: if `name` is unknown.
  """
  if name in _NORMAL_STDDEV:
    table = _NORMAL_STDDEV[name]
    stddev = table.get((role, number), table[role])
    return jax.nn.initializers.normal(stddev)
  scaled = {
    'he': jax.nn.initializers.he_normal,
    'glorot': jax.nn.initializers.glorot_uniform,
    'lecun': jax.nn.initializers.lecun_normal,
  }
  if name not in scaled:
    raise ValueError(f'kernel_init is {name!r}, not one of {KERNEL_INITS}')
  return scaled[name]()


def local_response_norm(
  x: jax.Array,
  *,
  size: int = 5,
  k: float = 2.0,
  alpha: float = 1e-4,
  beta: float = 0.75,
  convention: str = 'paper',
) -> jax.Array:
  """Normalises each channel by the activity of its neighbouring channels.

  b[c] = a[c] / (k + scale * sum of a[j]^2 for j within size // 2 of c) ** beta
  with scale = alpha (`paper`: Krizhevsky et al. 2012, section 3.3) or
  alpha / size (`caffe`, which PyTorch and the 2012 source release share). The
  sum leaves out channels that do not exist.

  Args:
    x: activations [..., channels], float32 or bfloat16. The sum and the
      denominator are computed in float32.
    size: number of channels in the sum, odd.
    k: constant of the bracket, positive.
    alpha: weight of the sum.
    beta: exponent.
    convention: `paper` or `caffe`.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: if `size` is even or `convention` is unknown.
  """
  if size % 2 != 1:
    raise ValueError(f'size is {size}; a neighbourhood needs an odd size')
  if convention not in LRN_CONVENTIONS:
    raise ValueError(
      f'convention is {convention!r}, not one of {LRN_CONVENTIONS}'
    )
  scale = alpha if convention == 'paper' else alpha / size
  squares = jnp.square(x.astype(jnp.float32))
  half = size // 2
  padding = [(0, 0)] * (x.ndim - 1) + [(half, half)]
  padded = jnp.pad(squares, padding)
  channels = x.shape[-1]
  # Shifted slices add up faster than reduce_window on every backend tried.
  total = sum(
    lax.slice_in_dim(padded, i, i + channels, axis=-1) for i in range(size)
  )
  return (x * _negative_power(k + scale * total, beta)).astype(x.dtype)


def _negative_power(x: jax.Array, beta: float) -> jax.Array:
  """x ** -beta for positive x."""
  if beta == 0.75:  # two reciprocal roots are cheaper than exp and log
    root = lax.rsqrt(x)
    return root * jnp.sqrt(root)
  return x**-beta
