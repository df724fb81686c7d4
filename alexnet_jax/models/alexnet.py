"""The AlexNet module; its fields span the variants."""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from alexnet_jax.models import layers

NORMS = ('lrn', 'batch', 'none')

# One layer's padding: 'SAME', 'VALID', one number for every side or (before,
# after) for both axes.
Padding = str | int | tuple[int, int]


class AlexNet(nn.Module):
  """Convolutions, normalisation, pooling and dense layers of AlexNet.

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
    norm_layers: numbers (from 1) of the convolutions that are normalised.
    norm_before_relu: whether normalisation precedes the ReLU; the paper's
      follows it.
    batch_norm_momentum: share of the running statistics that a step keeps.
    lrn_size, lrn_k, lrn_alpha, lrn_beta, lrn_convention: see
      `layers.local_response_norm`.
    hidden: widths of the hidden dense layers.
    dropout: share of the hidden units set to zero in training.
    width_multiplier: factor on `channels` and `hidden`, rounded so that the
      groups divide the channels.
    kernel_init: see `layers.kernel_initializer`.
    positive_bias: initial bias of the layers where the paper starts with 1
      (`bias_layers` and every hidden dense layer); all other biases start at 0.
    bias_layers: numbers (from 1) of the convolutions with a positive bias.
    dtype: dtype of the computation, float32 or bfloat16.
    axis_name: device axis over which batch norm averages its statistics, or
      None for the statistics of one device.
  """

  num_classes: int = 1000
  channels: Sequence[int] = (96, 256, 384, 384, 256)
  kernels: Sequence[int] = (11, 5, 3, 3, 3)
  strides: Sequence[int] = (4, 1, 1, 1, 1)
  paddings: Sequence[Padding] = ((2, 1), 'SAME', 'SAME', 'SAME', 'SAME')
  groups: Sequence[int] = (1, 1, 1, 1, 1)
  pool_layers: Sequence[int] = (1, 2, 5)
  pool_size: int = 3
  pool_stride: int = 2
  norm: str = 'lrn'
  norm_layers: Sequence[int] = (1, 2)
  norm_before_relu: bool = False
  batch_norm_momentum: float = 0.9
  lrn_size: int = 5
  lrn_k: float = 2.0
  lrn_alpha: float = 1e-4
  lrn_beta: float = 0.75
  lrn_convention: str = 'paper'
  hidden: Sequence[int] = (4096, 4096)
  dropout: float = 0.5
  width_multiplier: float = 1.0
  kernel_init: str = 'paper'
  positive_bias: float = 1.0
  bias_layers: Sequence[int] = (2, 4, 5)
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Logits of a batch.

    Args:
      images: [batch, height, width, 3], normalised, any float dtype.
      train: whether dropout acts (it needs the rng `dropout`) and batch norm
        uses and updates the statistics of the batch.

    Returns:
      Logits [batch, num_classes], float32.

    Raises:
      ValueError: if the fields that describe the convolutions differ in
        length, or the images are too small for the pooling.
    """
    self._check_fields()
    x = images.astype(self.dtype)
    for number in range(1, len(self.channels) + 1):
      x = self._convolution_block(x, number, train)
    x = x.reshape((x.shape[0], -1))
    for number, width in enumerate(self.hidden, 1):
      x = self._dense(x, self._scaled(width), 'dense', number)
      x = nn.relu(x)
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    logits = self._dense(x, self.num_classes, 'head', 1)
    return logits.astype(jnp.float32)

  def _convolution_block(self, x, number, train):
    index = number - 1
    groups = self.groups[index]
    x = nn.Conv(
      self._scaled(self.channels[index], max(self.groups)),
      (self.kernels[index],) * 2,
      strides=(self.strides[index],) * 2,
      padding=_padding(self.paddings[index]),
      feature_group_count=groups,
      dtype=self.dtype,
      kernel_init=layers.kernel_initializer(self.kernel_init, 'conv', number),
      bias_init=self._bias_init(number in self.bias_layers),
      name=f'conv{number}',
    )(x)
    normalise = functools.partial(self._normalise, number=number, train=train)
    if self.norm_before_relu:
      x = nn.relu(normalise(x))
    else:
      x = normalise(nn.relu(x))
    if number in self.pool_layers:
      if min(x.shape[1:3]) < self.pool_size:
        raise ValueError(
          f'convolution {number} gives {x.shape[1]} x {x.shape[2]} pixels, less'
          f' than the pooling window of {self.pool_size}: use larger crops,'
          ' smaller strides or fewer pool_layers'
        )
      x = nn.max_pool(x, (self.pool_size,) * 2, (self.pool_stride,) * 2)
      self.sow('intermediates', f'pool{number}', x)  # only if asked for
    return x

  def _normalise(self, x, number, train):
    if self.norm == 'none' or number not in self.norm_layers:
      return x
    if self.norm == 'batch':
      return nn.BatchNorm(
        use_running_average=not train,
        momentum=self.batch_norm_momentum,
        dtype=self.dtype,
        axis_name=self.axis_name if train else None,
        name=f'norm{number}',
      )(x)
    return layers.local_response_norm(
      x,
      size=self.lrn_size,
      k=self.lrn_k,
      alpha=self.lrn_alpha,
      beta=self.lrn_beta,
      convention=self.lrn_convention,
    )

  def _dense(self, x, width, role, number):
    return nn.Dense(
      width,
      dtype=self.dtype,
      kernel_init=layers.kernel_initializer(self.kernel_init, role, number),
      bias_init=self._bias_init(role == 'dense'),
      name='head' if role == 'head' else f'dense{number}',
    )(x)

  def _bias_init(self, positive):
    value = self.positive_bias if positive else 0.0
    return jax.nn.initializers.constant(value)

  def _scaled(self, width, divisor=1):
    if self.width_multiplier == 1.0:
      return width
    scaled = round(width * self.width_multiplier / divisor) * divisor
    return max(divisor, scaled)

  def _check_fields(self):
    count = len(self.channels)
    for name in ('kernels', 'strides', 'paddings', 'groups'):
      if len(getattr(self, name)) != count:
        raise ValueError(
          f'{name} has {len(getattr(self, name))} entries for {count}'
          f' convolutions: {getattr(self, name)}'
        )
    if self.norm not in NORMS:
      raise ValueError(f'norm is {self.norm!r}, not one of {NORMS}')


def _padding(padding: Padding) -> str | list[tuple[int, int]]:
  """Padding of one convolution in the form that `nn.Conv` takes."""
  if isinstance(padding, str):
    return padding
  if isinstance(padding, int):
    padding = (padding, padding)
  return [tuple(padding)] * 2
