"""What follows a convolution of AlexNet, in one kernel where that can be.

`network` is an `AlexNet`; what is needed of it are its fields.
"""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from alexnet_jax.models import fused
from alexnet_jax.models.operations import after_convolution

_FUSED_ORDERS = (
  ('relu', 'pool'),
  ('relu', 'norm', 'pool'),
  ('norm', 'relu', 'pool'),
)


class BiasApart(nn.Conv):
  """A convolution that gives (its output without the bias, the bias).

  Its parameters are those of `nn.Conv`, from the first value on.
  """

  @nn.compact
  def __call__(self, inputs):
    channels = inputs.shape[-1] // self.feature_group_count
    kernel = self.param(
      'kernel',
      self.kernel_init,
      (*self.kernel_size, channels, self.features),
      self.param_dtype,
    )
    bias = self.param(
      'bias', self.bias_init, (self.features,), self.param_dtype
    )
    x = lax.conv_general_dilated(
      inputs,
      kernel.astype(self.dtype),
      self.strides,
      self.padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=self.feature_group_count,
    )
    return x, bias


def padded(images: jax.Array, padding):
  """(the images with their padding, as an array of its own, no padding).

  Without the barrier XLA writes the images twice, for the convolution with
  their padding and for its gradient without.
  """
  if isinstance(padding, str):
    return images, padding
  images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
  return lax.optimization_barrier(images), 'VALID'


def is_fused(network, number: int) -> bool:
  """Whether one kernel can do what follows convolution `number`."""
  return (
    network.forms.tail == 'fused'
    and number in network.pool_layers
    and after_convolution(network, number) in _FUSED_ORDERS
    and not (network.norm == 'batch' and number in network.norm_layers)
    and not (network.lrn_groups > 1 and _normalizes(network, number))
    # Who looks at what is in between needs it.
    and not network.is_mutable_collection('intermediates')
  )


def obstacle(network, shape, number: int) -> str:
  """Why there is no kernel for activations of that shape; '' if there is."""
  return fused.obstacle(
    shape,
    network.dtype,
    lrn_size=network.lrn_size if _normalizes(network, number) else 0,
    pool_size=network.pool_size,
  )


def apply(network, x: jax.Array, bias: jax.Array, number: int) -> jax.Array:
  """Bias, ReLU, normalization and pooling of convolution `number`."""
  pooling = {
    'pool_size': network.pool_size,
    'pool_stride': network.pool_stride,
  }
  if not _normalizes(network, number):
    return fused.relu_max_pool(x, bias, **pooling)
  return fused.lrn_max_pool(
    x,
    bias,
    relu=(
      'after' if after_convolution(network, number)[0] == 'norm' else 'before'
    ),
    lrn_size=network.lrn_size,
    k=network.lrn_k,
    alpha=network.lrn_alpha,
    beta=network.lrn_beta,
    convention=network.lrn_convention,
    **pooling,
  )


def _normalizes(network, number):
  return network.norm == 'lrn' and number in network.norm_layers
