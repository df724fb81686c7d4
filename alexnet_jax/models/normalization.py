"""Local response normalization, plain and with a derivative of its own."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

LRN_CONVENTIONS = ('paper', 'caffe')


def local_response_norm(
  x: jax.Array,
  *,
  size: int = 5,
  k: float = 2.0,
  alpha: float = 1e-4,
  beta: float = 0.75,
  convention: str = 'paper',
  groups: int = 1,
  form: str = 'plain',
) -> jax.Array:
  """Normalizes each channel by the activity of its neighboring channels.

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
    groups: of channels that see nothing of each other; 2: the two towers, as
      in the 2012 source release, where each is on a GPU of its own.
    form: `plain`, whose gradient is that of autodiff, or `closed`, which keeps
      nothing but `x` for a gradient in closed form.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: if `size` is even, `convention` unknown, or `groups` do not
      divide the channels.
  """
  check_lrn(size, convention)
  if x.shape[-1] % groups:
    raise ValueError(f'{x.shape[-1]} channels are no {groups} equal groups')
  normalize = _closed if form == 'closed' else _plain
  scale = lrn_scale(size, alpha, convention)
  grouped = x.reshape(*x.shape[:-1], groups, -1) if groups > 1 else x
  return normalize(grouped, size, k, scale, beta).reshape(x.shape)


def spatial_response_norm(
  x: jax.Array,
  *,
  size: int = 5,
  k: float = 1.0,
  alpha: float = 0.001,
  beta: float = 0.75,
) -> jax.Array:
  """Normalizes each pixel by the activity around it in the same channel.

  b[y, x] = a[y, x] / (k + alpha / size^2 * sum of a[v, u]^2 for v and u within
  size // 2 of y and x) ** beta: the layer `rnorm` of the 2012 source release,
  whose constant is 1. The sum leaves out pixels that do not exist.

  Args:
    x: activations [batch, height, width, channels], float32 or bfloat16. The
      sum and the denominator are computed in float32.
    size: width of the window, odd, in pixels.
    k: constant of the bracket, positive.
    alpha: weight of the window's mean of squares.
    beta: exponent.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: if `size` is even.
  """
  if size % 2 != 1:
    raise ValueError(f'size is {size}; a neighborhood needs an odd size')
  total = jnp.square(x.astype(jnp.float32))
  for axis in (1, 2):
    total = _neighbors_sum(total, size, axis)
  bracket = k + alpha / size**2 * total
  return (x * negative_power(bracket, beta)).astype(x.dtype)


def check_lrn(size: int, convention: str) -> None:
  """Raises ValueError if `size` is even or `convention` is unknown."""
  if size % 2 != 1:
    raise ValueError(f'size is {size}; a neighborhood needs an odd size')
  if convention not in LRN_CONVENTIONS:
    raise ValueError(
      f'convention is {convention!r}, not one of {LRN_CONVENTIONS}'
    )


def lrn_scale(size: int, alpha: float, convention: str) -> float:
  """Factor of the sum of squares; see `local_response_norm`."""
  return alpha if convention == 'paper' else alpha / size


def _plain(x, size, k, scale, beta):
  bracket = _bracket(x.astype(jnp.float32), size, k, scale)
  return (x * negative_power(bracket, beta)).astype(x.dtype)


def _bracket(x, size, k, scale):
  return k + scale * _neighbors_sum(jnp.square(x), size)


def _neighbors_sum(x, size, axis=-1):
  """Sum over the `size` places around each; those outside count nothing."""
  padding = [(0, 0)] * x.ndim
  padding[axis] = (size // 2, size // 2)
  padded = jnp.pad(x, padding)
  # Shifted slices add up faster than reduce_window on every backend tried.
  return sum(
    lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis)
    for i in range(size)
  )


def negative_power(x: jax.Array, beta: float) -> jax.Array:
  """x ** -beta for positive x."""
  if beta == 0.75:  # two reciprocal roots are cheaper than exp and log
    root = lax.rsqrt(x)
    return root * jnp.sqrt(root)
  return x**-beta


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _closed(x, size, k, scale, beta):
  return _plain(x, size, k, scale, beta)


def _closed_forward(x, *options):
  return _closed(x, *options), x


def _closed_backward(size, k, scale, beta, x, gradient):
  """With d the bracket and g the gradient, the derivative of the sum over g b:

  dx[c] = g[c] d[c]^-beta
          - 2 beta scale x[c] sum of g[j] x[j] d[j]^(-beta - 1), j around c.
  """
  wide, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
  bracket = _bracket(wide, size, k, scale)
  power = negative_power(bracket, beta)
  if beta == 0.75:
    root = lax.rsqrt(bracket)
    higher = power * root * root  # no division
  else:
    higher = power / bracket
  through_others = _neighbors_sum(gradient * wide * higher, size)
  own = gradient * power
  return ((own - 2 * beta * scale * wide * through_others).astype(x.dtype),)


_closed.defvjp(_closed_forward, _closed_backward)
