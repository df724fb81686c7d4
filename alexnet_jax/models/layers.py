"""Layers that flax lacks: LRN, max-pool, dropout, initializers.

With `custom_vjp` they compute the same, forward bit for bit; the gradient is
faster or keeps less memory.
"""

import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

# Standard deviations of the normal initializers by (role, number of the layer,
# from 1); a role alone is the default of that role.
_PAPER = {'conv': 0.01, 'dense': 0.01, 'head': 0.01}
_NORMAL_STDDEV = {
  'paper': _PAPER,
  'source_release': _PAPER | {('conv', number): 0.03 for number in (3, 4, 5)},
  'caffe': _PAPER | {'dense': 0.005},
}
_SCALED = {
  'he': jax.nn.initializers.he_normal(),
  'glorot': jax.nn.initializers.glorot_uniform(),
  'torch': jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
}


def kernel_initializer(name: str, role: str, number: int):
  """Returns the initializer (key, shape, dtype) -> array of a layer's kernel.

  Args:
    name: one of `spec.KERNEL_INITS`. `paper` is N(0, 0.01) everywhere
      (Krizhevsky et al. 2012, section 5), `torch` uniform within
      1 / sqrt(fan_in), PyTorch's default.
    role: `conv`, `dense` (hidden) or `head` (logits).
    number: position of the layer among those of its role, from 1.
  """
  if name in _SCALED:
    return _SCALED[name]
  table = _NORMAL_STDDEV[name]
  return jax.nn.initializers.normal(table.get((role, number), table[role]))


def bias_initializer(name: str, value: float, fan_in: int):
  """Returns the initializer (key, shape, dtype) -> array of a layer's bias.

  It is the constant `value`; with `torch` as the kernel's initializer 0 becomes
  uniform within 1 / sqrt(fan_in), as in PyTorch.
  """
  if name != 'torch' or value:
    return jax.nn.initializers.constant(value)
  bound = fan_in**-0.5
  return functools.partial(jax.random.uniform, minval=-bound, maxval=bound)


def dropout(
  x: jax.Array, keys: jax.Array, rate: float, number: int, scale: bool = True
) -> jax.Array:
  """Sets a share of each example's units to zero and may scale up the others.

  As flax' Dropout (Hinton et al. 2012), but which units of an example are kept
  depends only on its key and the number of the layer.

  Args:
    x: [batch, ...], float32 or bfloat16, as what is returned.
    keys: typed keys [batch].
    rate: share of the units set to zero, below 1.
    number: that of the layer, so that layers draw different units.
    scale: whether the others are divided by 1 - rate; if not, evaluation has to
      multiply all units by it, as in the paper.
  """

  def kept(key):
    key = jax.random.fold_in(key, number)
    return jax.random.bernoulli(key, 1 - rate, x.shape[1:])

  others = x / (1 - rate) if scale else x
  return jnp.where(jax.vmap(kept)(keys), others, jnp.zeros_like(x))


class LocalResponseNorm(nn.Module):
  """Normalizes each channel by the activity of its neighboring channels.

  b[c] = a[c] / (k + scale * sum of a[j]^2 for j within size // 2 of c) ** beta
  with scale = alpha (`paper`: Krizhevsky et al. 2012, section 3.3) or
  alpha / size (`caffe`, which PyTorch and the 2012 source release share). The
  sum leaves out channels that do not exist. `size` is odd, k positive.
  """

  size: int = 5
  k: float = 2.0
  alpha: float = 1e-4
  beta: float = 0.75
  convention: str = 'paper'
  # Groups of channels see nothing of each other; 2: the two towers, as in the
  # 2012 source release, where each is on its own GPU.
  groups: int = 1
  custom_vjp: bool = False  # a closed form that keeps nothing but the input

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes [..., channels], float32 or bfloat16; computes in float32.

    Raises ValueError if `groups` do not divide the channels.
    """
    return self._of_groups(_lrn_closed if self.custom_vjp else _lrn, x)

  def factor(self, x: jax.Array) -> jax.Array:
    """Returns what `__call__` multiplies x by, float32 [..., channels]."""
    return self._of_groups(_factor, x)

  def _of_groups(self, function, x):
    channels, caffe = x.shape[-1], self.convention == 'caffe'
    if channels % self.groups:
      raise ValueError(f'{channels} channels are no {self.groups} equal groups')
    scale = self.alpha / self.size if caffe else self.alpha
    grouped = x
    if self.groups > 1:
      grouped = x.reshape(*x.shape[:-1], self.groups, -1)
    y = function(grouped, self.size, self.k, scale, self.beta)
    return y.reshape(x.shape)


class SpatialResponseNorm(nn.Module):
  """Normalizes each pixel by the activity around it in the same channel.

  b[y, x] = a[y, x] / (k + alpha / size^2 * sum of a[v, u]^2 for v and u within
  size // 2 of y and x) ** beta: the layer `rnorm` of the 2012 source release,
  with its numbers. The sum leaves out pixels that do not exist. `size` is odd.
  """

  size: int = 5
  k: float = 1.0
  alpha: float = 0.001
  beta: float = 0.75

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes [batch, height, width, channels], as `LocalResponseNorm`."""
    return (x * self.factor(x)).astype(x.dtype)

  def factor(self, x: jax.Array) -> jax.Array:
    """Returns what `__call__` multiplies x by, float32, of its shape."""
    scale = self.alpha / self.size**2
    return _factor(x, self.size, self.k, scale, self.beta, axes=(1, 2))


def _lrn(x, size, k, scale, beta):
  return (x * _factor(x, size, k, scale, beta)).astype(x.dtype)


def _factor(x, size, k, scale, beta, axes=(-1,)):
  bracket = _bracket(x.astype(jnp.float32), size, k, scale, axes)
  return _negative_power(bracket, beta)


def _bracket(x, size, k, scale, axes=(-1,)):
  total = jnp.square(x)
  for axis in axes:
    total = _neighbors_sum(total, size, axis)
  return k + scale * total


def _neighbors_sum(x, size, axis=-1):
  """Returns the sum over `size` neighbors of each; those outside count as 0."""
  padding = [(0, 0)] * x.ndim
  padding[axis] = (size // 2, size // 2)
  padded = jnp.pad(x, padding)
  # Shifted slices add up faster than reduce_window on every backend tried.
  return sum(
    lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis)
    for i in range(size)
  )


def _negative_power(x, beta):
  """Returns x ** -beta for positive x."""
  if beta == 0.75:  # two reciprocal roots are cheaper than exp and log
    root = lax.rsqrt(x)
    return root * jnp.sqrt(root)
  return x**-beta


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _lrn_closed(x, size, k, scale, beta):
  return _lrn(x, size, k, scale, beta)


def _lrn_forward(x, *options):
  return _lrn_closed(x, *options), x


def _lrn_backward(size, k, scale, beta, x, gradient):
  """Returns the derivative of the sum over g b, d the bracket, g the gradient.

  dx[c] = g[c] d[c]^-beta
          - 2 beta scale x[c] sum of g[j] x[j] d[j]^(-beta - 1), j around c.
  """
  wide, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
  bracket = _bracket(wide, size, k, scale)
  power = _negative_power(bracket, beta)
  if beta == 0.75:
    root = lax.rsqrt(bracket)
    higher = power * root * root  # no division
  else:
    higher = power / bracket
  through_others = _neighbors_sum(gradient * wide * higher, size)
  own = gradient * power
  return ((own - 2 * beta * scale * wide * through_others).astype(x.dtype),)


_lrn_closed.defvjp(_lrn_forward, _lrn_backward)


class MaxPool(nn.Module):
  """Takes the largest value of each window, without padding.

  With `custom_vjp` the gradient compares shifted slices, to the same numbers.
  """

  size: int  # width of the windows, in pixels
  stride: int  # distance of the windows, in pixels
  custom_vjp: bool = False

  def __call__(self, x: jax.Array) -> jax.Array:
    """Pools [batch, height, width, channels], float32 or bfloat16."""
    # Every offset in a window, and every plane of a stride, is compiled.
    is_small = max(self.size, self.stride) < 16
    pool = _max_pool_compared if self.custom_vjp and is_small else _max_pool
    return pool(x, self.size, self.stride)


def _max_pool(x, size, stride):
  # With keywords: jax2onnx knows no other call.
  return nn.max_pool(
    x, window_shape=(size, size), strides=(stride, stride), padding='VALID'
  )


_max_pool_compared = jax.custom_vjp(_max_pool, nondiff_argnums=(1, 2))


def _max_pool_forward(x, size, stride):
  y = _max_pool_compared(x, size, stride)
  return y, (x, y)


def _max_pool_backward(size, stride, saved, gradient):
  """Returns each pixel's sum of the gradients of the windows that chose it.

  Pixels with the same remainders by the stride are computed together: they have
  the same offsets in their windows.
  """
  x, y = saved
  index = _argmax_in_window(x, y, size, stride)
  zero = jnp.zeros((), gradient.dtype)
  by_offset = {
    divmod(number, size): jnp.where(index == number, gradient, zero)
    for number in range(size * size)
  }
  shape = tuple(-(-n // stride) for n in x.shape[1:3])
  each = range(stride)
  planes = jnp.stack(
    [
      jnp.stack([_plane(by_offset, shape, stride, (i, j)) for j in each], 3)
      for i in each
    ],
    2,
  )
  _, height, width, channels = x.shape
  planes = planes.reshape(-1, shape[0] * stride, shape[1] * stride, channels)
  return (planes[:, :height, :width],)


_max_pool_compared.defvjp(_max_pool_forward, _max_pool_backward)


def _argmax_in_window(x, y, size, stride):
  """Returns the index of each window's largest value, row * size + column.

  It is the first of several largest, row by row, as `nn.max_pool` selects.
  """
  rows, columns = ((n - 1) * stride + 1 for n in y.shape[1:3])
  index = jnp.zeros(y.shape, jnp.uint8)
  for number in reversed(range(size * size)):
    i, j = divmod(number, size)
    part = x[:, i : i + rows : stride, j : j + columns : stride]
    index = jnp.where(part == y, jnp.uint8(number), index)
  return index


def _plane(by_offset, shape, stride, first):
  """Returns the gradients of every `stride`th pixel from `first` on.

  `by_offset` is {(row, column) in the window: gradients of the windows that
  chose it, zero elsewhere}.
  """
  example = by_offset[0, 0]
  batch, rows, columns, channels = example.shape
  zero = jnp.zeros((), example.dtype)
  total = jnp.zeros((batch, *shape, channels), example.dtype)
  for (i, j), chosen in by_offset.items():
    if (i % stride, j % stride) == first:
      top, left = i // stride, j // stride
      bottom, right = shape[0] - rows - top, shape[1] - columns - left
      ends = [(0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)]
      total += lax.pad(chosen, zero, ends)
  return total
