"""The AlexNet module; its fields span the variants."""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from alexnet_jax.models import layers, spec
from alexnet_jax.models.convolution import convolution


def resolve_implementation(setting: str, platform: str) -> str:
  """Returns the implementation for a platform, that of a `jax.Device`.

  With the setting `auto` it is the fastest known. All agree up to rounding:

  - reference: the operations as one writes them first, their gradients by
    automatic differentiation.
  - cpu: the convolutions of `convolution`, and custom gradients of LRN and
    max-pool.
  - gpu: what XLA and cuDNN make of the reference, with the closed gradient of
    LRN, which keeps nothing but its input. Never run on a GPU.
  """
  known = setting == 'auto' and platform in ('cpu', 'gpu')
  return platform if known else 'reference'


class AlexNet(spec.AlexNetSpec, nn.Module):
  """Convolutions, normalization, pooling and dense layers of AlexNet.

  The fields that describe the network, such as `channels`, are those of
  `spec.AlexNetSpec`; `groups=(1, 2, 1, 2, 2)` gives the two towers of
  Krizhevsky et al. 2012. Parameters are float32 whatever `dtype` is.
  """

  num_classes: int = 1000
  dtype: jnp.dtype = jnp.float32  # of the computation; or bfloat16
  # Device axis over which batch norm averages its statistics; None: of one.
  axis_name: str | None = None
  implementation: str = 'reference'  # see `resolve_implementation`

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    train: bool = False,
    fixed_norms: Sequence[str] = (),
    dropout_keys: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the logits of a batch, float32 [batch, num_classes].

    Args:
      images: [batch, height, width, 3], normalized, any float dtype.
      train: whether dropout acts and batch norm uses and updates the statistics
        of the batch.
      fixed_norms: names of the batch norms that keep and use their running
        statistics in training, too, such as `norm1`.
      dropout_keys: keys [batch], where dropout acts; see `layers.dropout`.

    Raises ValueError if a field is unfit (see `spec.problem`), the images are
    too small for the pooling, or dropout lacks its keys.
    """
    if problem := spec.problem(vars(self)):
      raise ValueError(problem)
    x = images.astype(self.dtype)
    for number in range(1, len(self.channels) + 1):
      x = self._convolution_block(x, number, train, fixed_norms)
    x = x.reshape((x.shape[0], -1))
    for number in range(1, len(self.hidden) + 1):
      x = self._hidden_block(x, number, train, dropout_keys)
    logits = self._dense(x, self.num_classes, 'head', 1)
    return logits.astype(jnp.float32)

  def _convolution_block(self, x, number, train, fixed_norms):
    x = self._convolution(x, number)
    for operation in self.convolution_operations(number):
      if operation == 'relu':
        x = self.activate(x)
      elif operation == 'pool':
        size, stride = self.pool_size, self.pool_stride
        if min(x.shape[1:3]) < size:
          raise ValueError(
            f'convolution {number} gives {x.shape[1]} x {x.shape[2]} pixels,'
            f' less than the pooling window of {size}: use larger crops,'
            ' smaller strides or fewer pool_layers'
          )
        own = self.implementation == 'cpu'
        x = layers.MaxPool(size, stride, own, name=f'pool{number}')(x)
      elif operation == 'spatial':
        x = layers.SpatialResponseNorm(name=f'spatial{number}')(x)
      elif self.norm == 'batch':
        x = self._batch_norm(x, f'norm{number}', train, fixed_norms)
      elif self.norm == 'lrn':
        x = layers.LocalResponseNorm(
          self.lrn_size,
          self.lrn_k,
          self.lrn_alpha,
          self.lrn_beta,
          convention=self.lrn_convention,
          groups=self.lrn_groups,
          custom_vjp=self.implementation != 'reference',
          name=f'lrn{number}',
        )(x)
    return x

  def activate(self, x: jax.Array) -> jax.Array:
    """Applies the activation, a function of each number."""
    return nn.relu(x) if self.activation == 'relu' else nn.tanh(x)

  def _hidden_block(self, x, number, train, dropout_keys):
    for operation in self.hidden_operations():
      if operation == 'dense':
        width = self.scaled(self.hidden[number - 1])
        x = self._dense(x, width, 'dense', number)
      elif operation == 'relu':
        x = self.activate(x)
      else:
        x = self._dropout(x, number, train, dropout_keys)
    return x

  def _convolution(self, x, number):
    index = number - 1
    groups, size = self.groups[index], self.kernels[index]
    padding = self.paddings[index]
    if not isinstance(padding, str | int):  # before and after
      padding = (tuple(padding),) * 2
    fan_in = size**2 * x.shape[-1] // groups
    own = convolution if self.implementation == 'cpu' else None
    return nn.Conv(
      self.scaled(self.channels[index], max(self.groups)),
      (size, size),
      strides=(self.strides[index],) * 2,
      padding=padding,
      feature_group_count=groups,
      dtype=self.dtype,
      kernel_init=layers.kernel_initializer(self.kernel_init, 'conv', number),
      bias_init=self._bias_initializer(number in self.bias_layers, fan_in),
      conv_general_dilated=own,
      name=f'conv{number}',
    )(x)

  def _batch_norm(self, x, name, train, fixed_norms):
    updates = train and name not in fixed_norms
    return nn.BatchNorm(
      use_running_average=not updates,
      momentum=self.batch_norm_momentum,
      epsilon=self.batch_norm_epsilon,
      dtype=self.dtype,
      axis_name=self.axis_name if updates else None,
      name=name,
    )(x)

  def _dropout(self, x, number, train, keys):
    scales_here = self.dropout_scaling == 'training'
    if not (train and self.dropout):
      return x if scales_here else x * (1 - self.dropout)
    if keys is None:
      raise ValueError(
        f'training with a dropout of {self.dropout} needs dropout_keys, a key'
        ' for each example'
      )
    with jax.named_scope(f'dropout{number}'):
      x = layers.dropout(x, keys, self.dropout, number, scales_here)
    self.sow('intermediates', f'dropout{number}', x)  # only if asked for
    return x

  def _dense(self, x, width, role, number):
    return nn.Dense(
      width,
      dtype=self.dtype,
      kernel_init=layers.kernel_initializer(self.kernel_init, role, number),
      bias_init=self._bias_initializer(role == 'dense', x.shape[-1]),
      name='head' if role == 'head' else f'dense{number}',
    )(x)

  def _bias_initializer(self, positive, fan_in):
    return layers.bias_initializer(
      self.kernel_init, self.bias_init if positive else 0.0, fan_in
    )
