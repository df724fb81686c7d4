"""Layers and initialisers that AlexNet needs and flax does not have."""

import functools
import itertools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

LRN_CONVENTIONS = ('paper', 'caffe')
KERNEL_INITS = (
  'paper',
  'source_release',
  'caffe',
  'he',
  'glorot',
  'lecun',
  'torch',
)

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
      `he`, `glorot` and `lecun` scale with the layer's fan; `torch` is uniform
      within 1 / sqrt(fan_in), PyTorch's default.
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
    'torch': lambda: jax.nn.initializers.variance_scaling(
      1 / 3, 'fan_in', 'uniform'
    ),
  }
  if name not in scaled:
    raise ValueError(f'kernel_init is {name!r}, not one of {KERNEL_INITS}')
  return scaled[name]()


def bias_initializer(name: str, value: float, fan_in: int):
  """Initialiser of the bias of one layer: `value`, unless PyTorch's is wanted.

  Args:
    name: of the kernel's initialiser; `torch` draws biases that would be 0
      uniformly within 1 / sqrt(fan_in), as PyTorch does.
    value: of every other bias.
    fan_in: inputs of one output of the layer.

  Returns:
    A function (key, shape, dtype) -> array.
  """
  if name != 'torch' or value:
    return jax.nn.initializers.constant(value)
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


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


def dropout(
  x: jax.Array, keys: jax.Array, rate: float, number: int
) -> jax.Array:
  """Sets a share of each example's units to zero and scales up the others.

  As flax' Dropout (Hinton et al. 2012, inverted: evaluation changes nothing),
  but with a key for each example: which of its units are kept depends on its
  key and the number of the layer only, not on the examples beside it.

  Args:
    x: [batch, ...], float32 or bfloat16.
    keys: typed keys [batch].
    rate: share of the units set to zero, below 1.
    number: of the layer, so that layers draw different units.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: if there is not one key for each example.
  """
  if keys.shape != x.shape[:1]:
    raise ValueError(
      f'keys of shape {keys.shape} for a batch of {x.shape[0]}: dropout needs'
      ' one key for each example'
    )

  def kept(key):
    key = jax.random.fold_in(key, number)
    return jax.random.bernoulli(key, 1 - rate, x.shape[1:])

  return jnp.where(jax.vmap(kept)(keys), x / (1 - rate), jnp.zeros_like(x))


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
  """The largest of each window, without padding.

  Args:
    x: [batch, height, width, channels].
    size: width of the windows, in pixels.
    stride: distance of the windows, in pixels.

  Returns:
    [batch, (height - size) // stride + 1, ..., channels].
  """
  # On the CPU comparing is faster where windows do not overlap, and slower at
  # the paper's 3 x 3 windows.
  if stride >= size:
    return compared_max_pool(x, size, stride)
  return nn.max_pool(x, (size, size), (stride, stride))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def compared_max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
  """As `max_pool`, with a gradient that compares shifted slices.

  It goes to the first largest value of a window, row by row, as that of
  `nn.max_pool`, which selects and scatters.
  """
  return nn.max_pool(x, (size, size), (stride, stride))


def _max_pool_forward(x, size, stride):
  y = compared_max_pool(x, size, stride)
  return y, (x, y)


def _max_pool_backward(size, stride, saved, gradient):
  x, y = saved
  rows, columns = ((n - 1) * stride + 1 for n in y.shape[1:3])
  free = jnp.ones(y.shape, bool)  # windows whose largest value is not found
  total = jnp.zeros_like(x)
  for i, j in itertools.product(range(size), repeat=2):
    part = x[:, i : i + rows : stride, j : j + columns : stride]
    found = free & (part == y)
    free &= ~found
    total += lax.pad(
      jnp.where(found, gradient, jnp.zeros_like(gradient)),
      jnp.zeros((), x.dtype),
      [
        (0, 0, 0),
        (i, x.shape[1] - i - rows, stride - 1),
        (j, x.shape[2] - j - columns, stride - 1),
        (0, 0, 0),
      ],
    )
  return (total,)


compared_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
