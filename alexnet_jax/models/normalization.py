"""Local response normalisation, plain and with a derivative of its own."""

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
  form: str = 'plain',
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
    form: `plain`, whose gradient is that of autodiff, or `closed`, which keeps
      nothing but `x` for a gradient in closed form.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: if `size` is even or `convention` is unknown.
  """
  check_lrn(size, convention)
  normalise = _closed if form == 'closed' else _plain
  return normalise(x, size, k, lrn_scale(size, alpha, convention), beta)


def check_lrn(size: int, convention: str) -> None:
  """Raises ValueError if `size` is even or `convention` is unknown."""
  if size % 2 != 1:
    raise ValueError(f'size is {size}; a neighbourhood needs an odd size')
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
  return k + scale * _neighbours_sum(jnp.square(x), size)


def _neighbours_sum(x, size):
  """Sum over the `size` channels around each; those outside count nothing."""
  half = size // 2
  padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)])
  # Shifted slices add up faster than reduce_window on every backend tried.
  return sum(
    lax.slice_in_dim(padded, i, i + x.shape[-1], axis=-1) for i in range(size)
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
  through_others = _neighbours_sum(gradient * wide * higher, size)
  own = gradient * power
  return ((own - 2 * beta * scale * wide * through_others).astype(x.dtype),)


_closed.defvjp(_closed_forward, _closed_backward)
