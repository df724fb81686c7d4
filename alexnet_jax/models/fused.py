"""ReLU, response normalization and max-pooling as one operation for GPUs.

What follows a convolution reads its output once and writes only what is left of
it; the gradient reads that output, the gradient of what is left and a byte for
each of its values, and writes one array. XLA makes several kernels of the same
operations, with float32 arrays of the activations' size between them.

The kernels (`fused_forward`, `fused_backward`) are in Pallas for Triton. They
compile for NVIDIA GPUs from the Ampere generation on, and run anywhere, slowly,
as plain operations (`interpret=True`). Newer versions of JAX call that part of
Pallas deprecated; where it is gone, `obstacle` says so.
"""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp

from alexnet_jax.models.normalization import check_lrn
from alexnet_jax.models.normalization import lrn_scale

RELU_PLACES = ('before', 'after', 'none')

# The kernels have a copy of the code for each pixel of a window and each
# neighbor of a channel.
_LARGEST_POOL = 5
_LARGEST_LRN = 9


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is computed between a convolution and what follows its pooling.

  Attributes:
    window: width of the pooling windows, in pixels.
    stride: distance of the windows, in pixels.
    relu: `before` the normalization, `after` it, or `none`.
    size: number of channels in a sum, odd; 0: no normalization.
    k, scale, beta: of the bracket (k + scale * sum of squares) ** beta.
  """

  window: int
  stride: int
  relu: str
  size: int = 0
  k: float = 2.0
  scale: float = 1e-4
  beta: float = 0.75

  @property
  def half(self) -> int:
    """Neighbors on each side of a channel that its sum has."""
    return self.size // 2

  def pooled(self, width: int) -> int:
    """Number of windows in a row of `width` pixels."""
    return (width - self.window) // self.stride + 1


def lrn_max_pool(
  x: jax.Array,
  bias: jax.Array | None = None,
  *,
  relu: str = 'before',
  lrn_size: int = 5,
  k: float = 2.0,
  alpha: float = 1e-4,
  beta: float = 0.75,
  convention: str = 'paper',
  pool_size: int = 3,
  pool_stride: int = 2,
  interpret: bool = False,
) -> jax.Array:
  """max_pool(local_response_norm(relu(x + bias))) in one pass over `x`.

  The numbers are those of `normalization.local_response_norm` and
  `pooling.max_pool`: what is compared in a window has been rounded to the dtype
  of `x`, and the gradient goes to the first of several largest values, row by
  row. Sums, powers and the gradient's terms are float32, and so is the sum that
  is the bias' gradient. A gradient keeps nothing but `x` and the places of the
  largest values, a byte each.

  Args:
    x: [batch, height, width, channels], float32 or bfloat16: what a
      convolution gives.
    bias: [channels], float32, rounded to the dtype of `x` before it is added
      and the sum after; None: `x` has it already.
    relu: `before` the normalization, as in the paper, `after` it, or `none`.
    lrn_size, k, alpha, beta, convention: see
      `normalization.local_response_norm`.
    pool_size: width of the windows, in pixels; with 1 and a stride of 1 there
      is no pooling.
    pool_stride: distance of the windows, in pixels.
    interpret: whether to run the kernels as plain operations, on any device.

  Returns:
    [batch, (height - pool_size) // pool_stride + 1, ..., channels], dtype of
    `x`.

  Raises:
    ValueError: if an argument is unknown, or there is an `obstacle`.
  """
  check_lrn(lrn_size, convention)
  scale = lrn_scale(lrn_size, alpha, convention)
  spec = Spec(pool_size, pool_stride, relu, lrn_size, k, scale, beta)
  return _checked(x, bias, spec, interpret)


def relu_max_pool(
  x: jax.Array,
  bias: jax.Array | None = None,
  *,
  relu: bool = True,
  pool_size: int = 3,
  pool_stride: int = 2,
  interpret: bool = False,
) -> jax.Array:
  """max_pool(relu(x + bias)) in one pass; the gradient does not need `x`.

  See `lrn_max_pool`; `relu` says whether there is one.
  """
  place = 'after' if relu else 'none'
  return _checked(x, bias, Spec(pool_size, pool_stride, place), interpret)


def obstacle(
  shape: Sequence[int],
  dtype: jax.typing.DTypeLike,
  *,
  lrn_size: int = 0,
  pool_size: int = 3,
) -> str:
  """Why the kernels cannot do something; '' if they can.

  Args:
    shape: of `x`: (batch, height, width, channels).
    dtype: of `x`.
    lrn_size: number of channels in a sum; 0: no normalization.
    pool_size: width of the pooling windows, in pixels.
  """
  if not _has_triton():
    return f'jax {jax.__version__} has no Pallas for Triton any more'
  if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
    return f'activations are {jnp.dtype(dtype)}, not float32 or bfloat16'
  if lrn_size > _LARGEST_LRN:
    return f'sums of {lrn_size} channels are more than {_LARGEST_LRN}'
  if pool_size > _LARGEST_POOL:
    return f'windows of {pool_size} pixels are wider than {_LARGEST_POOL}'
  if min(shape[1:3]) < pool_size:
    return f'{shape[1]} x {shape[2]} pixels are less than a window'
  batch, height, width, channels = shape
  if batch * (height + 16) * (width + 16) * channels >= 2**31:
    return f'activations of shape {tuple(shape)} need indices of 64 bits'
  return ''


def _has_triton():
  try:
    found = importlib.util.find_spec('jax.experimental.pallas.triton')
  except ModuleNotFoundError:  # not even Pallas
    return False
  return found is not None


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
  """max(x, 0), whose gradient keeps the result and not `x`.

  So a convolution can write the result in the first place. As everywhere, the
  gradient at 0 is 0.
  """
  return jnp.maximum(x, 0)


def _relu_forward(x):
  y = jnp.maximum(x, 0)
  return y, y


def _relu_backward(y, gradient):
  # Of y > 0 XLA would make x > 0, and so keep both.
  return (jnp.where(y != 0, gradient, jnp.zeros_like(gradient)),)


relu.defvjp(_relu_forward, _relu_backward)


def _checked(x, bias, spec, interpret):
  if spec.relu not in RELU_PLACES:
    raise ValueError(f'relu is {spec.relu!r}, not one of {RELU_PLACES}')
  if spec.window < 1 or spec.stride < 1:
    raise ValueError(
      f'windows of {spec.window} pixels at a distance of {spec.stride}: both'
      ' must be at least 1'
    )
  found = obstacle(x.shape, x.dtype, lrn_size=spec.size, pool_size=spec.window)
  if found:
    raise ValueError(f'no fused kernel: {found}; use the plain operations')
  if bias is not None and bias.shape != x.shape[-1:]:
    raise ValueError(f'bias has shape {bias.shape}, not {x.shape[-1:]}')
  return _fused(x, bias, spec, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _fused(x, bias, spec, interpret):
  return _forward(x, bias, spec, interpret)[0]


def _forward(x, bias, spec, interpret):
  # Pallas is for those who use it only.
  from alexnet_jax.models import fused_forward

  pooled, places = fused_forward.forward(x, bias, spec, interpret)
  # Without sums the places say it all; of `x` its widths are kept.
  kept = x if spec.size else x[:0]
  return pooled, (kept, bias, places)


def _backward(spec, interpret, saved, gradient):
  from alexnet_jax.models import fused_backward

  return fused_backward.backward(*saved, gradient, spec, interpret)


_fused.defvjp(_forward, _backward)
