"""Named networks: each is `AlexNet` with other fields.

    config.model.update(variants.fields('flat_alexnet'))

The widths of the inputs that they are meant for, in pixels: 227 for
`alexnet_plain`, `alexnet_caffe` and `caffenet`, 28 for `marvin` and 224 for the
others; all take other widths.
"""

from typing import Any

from alexnet_jax.models import spec

_NO_NORM = {'norm': 'none', 'norm_layers': ()}
# Keras' defaults of its layers.
_KERAS = {
  'batch_norm_momentum': 0.99,
  'batch_norm_epsilon': 1e-3,
  'kernel_init': 'glorot',
  'bias_init': 0.0,
}
_TORCH = {**_NO_NORM, 'kernel_init': 'torch', 'bias_init': 0.0}
_CAFFE = {
  'groups': (1, 2, 1, 2, 2),
  'paddings': ('VALID', *('SAME',) * 4),
  'lrn_convention': 'caffe',
  'lrn_k': 1.0,
  'kernel_init': 'caffe',
  'bias_init': 0.1,
}
# Without the third and fourth convolution of 384 feature maps.
_FLAT = {
  'channels': (96, 256, 256),
  'kernels': (11, 5, 3),
  'strides': (4, 1, 1),
  'paddings': ((2, 1), 'SAME', 'SAME'),
  'groups': (1, 1, 1),
  'pool_layers': (1, 2, 3),
  'bias_layers': (2, 3),
}

VARIANTS: dict[str, dict[str, Any]] = {
  # Krizhevsky et al. 2012, with the two towers of its two GPUs.
  'alexnet': {'groups': (1, 2, 1, 2, 2)},
  'alexnet_one_tower': {},
  # Net 145 of the 2012 source release, the one of the paper's results: no ReLU
  # before the first normalization, a spatial one after the second, and each
  # tower's channels normalized apart.
  'alexnet_source_release': {
    'groups': (1, 2, 1, 2, 2),
    # It rounds sizes up: the last windows reach over the right and lower edge.
    'paddings': ((0, 3), *('SAME',) * 4),
    'block_order': (
      'norm-pool-relu',
      'relu-norm-spatial-pool',
      '',
      '',
      'pool-relu',
    ),
    'lrn_convention': 'caffe',
    'lrn_groups': 2,
    'kernel_init': 'source_release',
    'dropout_scaling': 'evaluation',
  },
  # Caffe's bvlc_alexnet and caffenet (bvlc_reference_caffenet).
  'alexnet_caffe': _CAFFE,
  'caffenet': {
    **_CAFFE,
    'bias_init': 1.0,
    'block_order': ('relu-pool-norm', 'relu-pool-norm', '', '', ''),
  },
  # Keras: batch norm before the ReLU of the first two convolutions.
  'alexnet_bn': {
    **_KERAS,
    'paddings': ('SAME',) * 5,
    'norm': 'batch',
    'norm_layers': (1, 2),
    'norm_before_relu': True,
  },
  # Keras: batch norm after the ReLU of all five convolutions.
  'alexnet_bn_all': {
    **_KERAS,
    'paddings': ('VALID', *('SAME',) * 4),
    'norm': 'batch',
    'norm_layers': (1, 2, 3, 4, 5),
  },
  # PyTorch: no normalization, no dropout.
  'alexnet_plain': {
    **_TORCH,
    'paddings': ('VALID', *('SAME',) * 4),
    'dropout': 0.0,
  },
  # Krizhevsky 2014 ("one weird trick"), as torchvision has it. Its average
  # pooling to 6 x 6 leaves inputs of 224 as they are, and is left out here.
  'alexnet_torchvision': {
    **_TORCH,
    'channels': (64, 192, 384, 256, 256),
    'paddings': (2, 2, 1, 1, 1),
    'dropout_position': 'before',
  },
  'flat_alexnet': _FLAT,
  'narrow_alexnet': {'channels': (48, 128, 192, 192, 128)},
  'flat_alexnet_high_stride': {**_FLAT, 'strides': (6, 2, 1)},
  'flat_alexnet_low_stride': {**_FLAT, 'strides': (2, 1, 1)},
  'flat_alexnet_large_kernel': {**_FLAT, 'kernels': (15, 7, 5)},
  'flat_alexnet_small_kernel': {**_FLAT, 'kernels': (7, 3, 3)},
  'flat_alexnet_tuned': {**_FLAT, 'hidden': (2379, 5592, 7864)},
  'marvin': {
    **_KERAS,
    **_NO_NORM,
    'channels': (32, 64),
    'kernels': (3, 3),
    'strides': (1, 1),
    'paddings': ('VALID', 'VALID'),
    'groups': (1, 1),
    'pool_layers': (1, 2),
    'pool_size': 2,
    'bias_layers': (),
    'hidden': (256, 256),
  },
}


def fields(name: str) -> dict[str, Any]:
  """Returns {name: value} of all fields of `spec.AlexNetSpec` of a network.

  The number of classes and the dtype are none of them. Raises ValueError if
  there is no such network.
  """
  if name not in VARIANTS:
    raise ValueError(
      f'there is no network {name!r}; there are {", ".join(VARIANTS)}'
    )
  return {**spec.defaults(), **VARIANTS[name]}
