"""The AlexNet module; its fields span the variants."""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from alexnet_jax.models import fields
from alexnet_jax.models import fused
from alexnet_jax.models import layers
from alexnet_jax.models import tail
from alexnet_jax.models.convolution import convolution
from alexnet_jax.models.dense import Dense
from alexnet_jax.models.forms import Forms
from alexnet_jax.models.forms import PLAIN
from alexnet_jax.models.normalization import local_response_norm
from alexnet_jax.models.normalization import spatial_response_norm
from alexnet_jax.models.operations import after_convolution
from alexnet_jax.models.operations import of_hidden_layer
from alexnet_jax.models.pooling import max_pool


class AlexNet(nn.Module):
  """Convolutions, normalization, pooling and dense layers of AlexNet.

  The defaults are the network of Krizhevsky et al. 2012 in one tower;
  `groups=(1, 2, 1, 2, 2)` gives its two towers. An input of 224 x 224 becomes
  55, 27, 13 and 6 pixels wide. Parameters are float32 whatever `dtype` is.

  Attributes:
    num_classes: number of logits.
    channels: output channels of each convolution.
    kernels: kernel width of each convolution, in pixels.
    strides: stride of each convolution, in pixels.
    paddings: padding of each convolution. 224 pixels padded by 2 before and 1
      after give the paper's 55.
    groups: number of groups of each convolution.
    pool_layers: numbers (from 1) of the convolutions that a max-pool follows.
    pool_size: width of the pooling window, in pixels.
    pool_stride: stride of the pooling, in pixels.
    norm: `lrn`, `batch` or `none`.
    norm_layers: numbers (from 1) of the convolutions that are normalized.
    norm_before_relu: whether normalization precedes the ReLU; the paper's
      follows it.
    block_order: of each convolution what follows it, in another order than
      these say: names of `operations.OPERATIONS` joined by `-`, such as
      `norm-pool-relu`; '' leaves the order as it is. `spatial` is
      `normalization.spatial_response_norm`, which no other field switches on.
    norm_hidden: numbers (from 1) of the hidden dense layers that batch norm
      normalizes, whatever `norm` is; before their ReLU as `norm_before_relu`
      says.
    batch_norm_momentum: share of the running statistics that a step keeps.
    batch_norm_epsilon: added to the variance.
    lrn_size, lrn_k, lrn_alpha, lrn_beta, lrn_convention, lrn_groups: see
      `normalization.local_response_norm`.
    spatial_size, spatial_k, spatial_alpha, spatial_beta: see
      `normalization.spatial_response_norm`.
    hidden: widths of the hidden dense layers.
    dropout: share of the units set to zero in training.
    dropout_scaling: whether what is kept is scaled up in `training`, or
      everything down in `evaluation`, as in the paper.
    dropout_position: `after` each hidden dense layer, as in the paper, or
      `before` it, as in torchvision.
    width_multiplier: factor on `channels` and `hidden`, rounded so that the
      groups divide the channels.
    kernel_init: see `layers.kernel_initializer`.
    bias_init: initial bias of the layers where the paper starts with 1
      (`bias_layers` and every hidden dense layer); all other biases start as
      `layers.bias_initializer` says, at 0 in most cases.
    bias_layers: numbers (from 1) of the convolutions with a positive bias.
    dtype: dtype of the computation, float32 or bfloat16.
    axis_name: device axis over which batch norm averages its statistics, or
      None for the statistics of one device.
    forms: of the operations; they change no numbers but by rounding.
  """

  num_classes: int = 1000
  channels: Sequence[int] = (96, 256, 384, 384, 256)
  kernels: Sequence[int] = (11, 5, 3, 3, 3)
  strides: Sequence[int] = (4, 1, 1, 1, 1)
  paddings: Sequence[layers.Padding] = ((2, 1), 'SAME', 'SAME', 'SAME', 'SAME')
  groups: Sequence[int] = (1, 1, 1, 1, 1)
  pool_layers: Sequence[int] = (1, 2, 5)
  pool_size: int = 3
  pool_stride: int = 2
  norm: str = 'lrn'
  norm_layers: Sequence[int] = (1, 2)
  norm_before_relu: bool = False
  block_order: Sequence[str] = ()
  norm_hidden: Sequence[int] = ()
  batch_norm_momentum: float = 0.9
  batch_norm_epsilon: float = 1e-5
  lrn_size: int = 5
  lrn_k: float = 2.0
  lrn_alpha: float = 1e-4
  lrn_beta: float = 0.75
  lrn_convention: str = 'paper'
  lrn_groups: int = 1
  spatial_size: int = 5
  spatial_k: float = 1.0
  spatial_alpha: float = 0.001
  spatial_beta: float = 0.75
  hidden: Sequence[int] = (4096, 4096)
  dropout: float = 0.5
  dropout_position: str = 'after'
  dropout_scaling: str = 'training'
  width_multiplier: float = 1.0
  kernel_init: str = 'paper'
  bias_init: float = 1.0
  bias_layers: Sequence[int] = (2, 4, 5)
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None
  forms: Forms = PLAIN

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    train: bool = False,
    fixed_norms: Sequence[str] = (),
    dropout_keys: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of a batch.

    Args:
      images: [batch, height, width, 3], normalized, any float dtype.
      train: whether dropout acts and batch norm uses and updates the statistics
        of the batch.
      fixed_norms: names of the batch norms that keep and use their running
        statistics in training, too, such as `norm1`.
      dropout_keys: keys [batch], one for each example; see `layers.dropout`.
        Needed only where dropout acts.

    Returns:
      Logits [batch, num_classes], float32.

    Raises:
      ValueError: if a field is unfit (see `fields.problem`), the images are too
        small for the pooling, or dropout lacks its keys.
    """
    if problem := fields.problem(vars(self)):
      raise ValueError(problem)
    x = images.astype(self.dtype)

    def updates_norm(name):
      return train and name not in fixed_norms

    for number in range(1, len(self.channels) + 1):
      x = self._convolution_block(x, number, updates_norm(f'norm{number}'))
    x = x.reshape((x.shape[0], -1))
    for number in range(1, len(self.hidden) + 1):
      dropout = functools.partial(self._dropout, train, dropout_keys, number)
      x = self._hidden_block(
        x, number, dropout, updates_norm(f'dense_norm{number}')
      )
    logits = self._dense(x, self.num_classes, 'head', 1)
    return logits.astype(jnp.float32)

  def _convolution_block(self, x, number, updates_norm):
    index = number - 1
    groups = self.groups[index]
    padding = layers.explicit_padding(self.paddings[index])
    if self.forms.tail == 'fused' and number == 1:
      x, padding = tail.padded(x, padding)
    apart = tail.is_fused(self, number)
    x = (tail.BiasApart if apart else nn.Conv)(
      self._scaled(self.channels[index], max(self.groups)),
      (self.kernels[index],) * 2,
      strides=(self.strides[index],) * 2,
      padding=padding,
      feature_group_count=groups,
      dtype=self.dtype,
      kernel_init=layers.kernel_initializer(self.kernel_init, 'conv', number),
      bias_init=self._bias_init(
        number in self.bias_layers,
        self.kernels[index] ** 2 * x.shape[-1] // groups,
      ),
      conv_general_dilated=(
        convolution if self.forms.convolution == 'ordered' else None
      ),
      name=f'conv{number}',
    )(x)
    if apart:
      x, bias = x
      if not tail.obstacle(self, x.shape, number):
        return tail.apply(self, x, bias, number)
      x += bias.astype(x.dtype)[None, None, None]
    for operation in after_convolution(self, number):
      if operation == 'relu':
        x = self._relu(x)
      elif operation == 'norm':
        x = self._normalize(x, number, updates_norm)
      elif operation == 'spatial':
        x = self._normalize_in_space(x, number)
      else:
        x = self._pool(x, number)
    return x

  def _pool(self, x, number):
    if min(x.shape[1:3]) < self.pool_size:
      raise ValueError(
        f'convolution {number} gives {x.shape[1]} x {x.shape[2]} pixels, less'
        f' than the pooling window of {self.pool_size}: use larger crops,'
        ' smaller strides or fewer pool_layers'
      )
    x = max_pool(x, self.pool_size, self.pool_stride, self.forms.max_pool)
    self.sow('intermediates', f'pool{number}', x)  # only if asked for
    return x

  def _hidden_block(self, x, number, dropout, updates_norm):
    for operation in of_hidden_layer(self, number):
      if operation == 'dense':
        width = self._scaled(self.hidden[number - 1])
        x = self._dense(x, width, 'dense', number)
      elif operation == 'norm':
        x = self._batch_norm(x, f'dense_norm{number}', updates_norm)
      elif operation == 'relu':
        x = self._relu(x)
      else:
        x = dropout(x)
    return x

  def _dropout(self, train, keys, number, x):
    scales_here = self.dropout_scaling == 'training'
    if not (train and self.dropout):
      return x if scales_here else x * (1 - self.dropout)
    if keys is None:
      raise ValueError(
        f'training with a dropout of {self.dropout} needs dropout_keys, a key'
        ' for each example'
      )
    x = layers.dropout(x, keys, self.dropout, number, scales_here)
    self.sow('intermediates', f'dropout{number}', x)  # only if asked for
    return x

  def _relu(self, x):
    # Where the ReLU's own output is enough for its gradient, cuDNN writes it.
    return (fused.relu if self.forms.tail == 'fused' else nn.relu)(x)

  def _normalize(self, x, number, updates_norm):
    if self.norm == 'none':
      return x
    if self.norm == 'batch':
      return self._batch_norm(x, f'norm{number}', updates_norm)
    x = local_response_norm(
      x,
      size=self.lrn_size,
      k=self.lrn_k,
      alpha=self.lrn_alpha,
      beta=self.lrn_beta,
      convention=self.lrn_convention,
      groups=self.lrn_groups,
      form=self.forms.lrn,
    )
    self.sow('intermediates', f'lrn{number}', x)  # only if asked for
    return x

  def _normalize_in_space(self, x, number):
    x = spatial_response_norm(
      x,
      size=self.spatial_size,
      k=self.spatial_k,
      alpha=self.spatial_alpha,
      beta=self.spatial_beta,
    )
    self.sow('intermediates', f'spatial{number}', x)  # only if asked for
    return x

  def _batch_norm(self, x, name, updates):
    return nn.BatchNorm(
      use_running_average=not updates,
      momentum=self.batch_norm_momentum,
      epsilon=self.batch_norm_epsilon,
      dtype=self.dtype,
      axis_name=self.axis_name if updates else None,
      name=name,
    )(x)

  def _dense(self, x, width, role, number):
    return (Dense if self.forms.dense == 'early' else nn.Dense)(
      width,
      dtype=self.dtype,
      kernel_init=layers.kernel_initializer(self.kernel_init, role, number),
      bias_init=self._bias_init(role == 'dense', x.shape[-1]),
      name='head' if role == 'head' else f'dense{number}',
    )(x)

  def _bias_init(self, positive, fan_in):
    return layers.bias_initializer(
      self.kernel_init, self.bias_init if positive else 0.0, fan_in
    )

  def _scaled(self, width, divisor=1):
    if self.width_multiplier == 1.0:
      return width
    scaled = round(width * self.width_multiplier / divisor) * divisor
    return max(divisor, scaled)
