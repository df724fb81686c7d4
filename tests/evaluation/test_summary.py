"""The table of a network: its layers in order of execution, and their sizes."""

import pytest

from alexnet_jax.evaluation import summary
from alexnet_jax.models.alexnet import AlexNet

SMALL = {
  'num_classes': 7,
  'channels': (8, 8),
  'kernels': (5, 3),
  'strides': (2, 1),
  'paddings': ((2, 1), 'SAME'),
  'groups': (1, 2),
  'pool_layers': (1, 2),
  'bias_layers': (),
  'hidden': (12,),
}
CONVS = {
  'conv1': '5 x 5, stride 2, padding 2 and 1',
  'conv2': '3 x 3, stride 1, padding SAME, 2 groups',
}
POOL = 'largest of 3 x 3, stride 2'


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (
      {},
      {
        'conv1': CONVS['conv1'],
        'lrn1': 'over 5 channels',
        'pool1': POOL,
        'conv2': CONVS['conv2'],
        'lrn2': 'over 5 channels',
        'pool2': POOL,
        'dense1': 'dense',
        'head': 'dense',
      },
    ),
    # The orders of Caffe's net and of the paper's released code.
    (
      {
        'lrn_groups': 2,
        'block_order': ('relu-pool-norm', 'norm-pool-relu-spatial'),
        'hidden': (),
      },
      {
        'conv1': CONVS['conv1'],
        'pool1': POOL,
        'lrn1': 'over 5 channels, 2 groups',
        'conv2': CONVS['conv2'],
        'lrn2': 'over 5 channels, 2 groups',
        'pool2': POOL,
        'spatial2': 'over 5 x 5',
        'head': 'dense',
      },
    ),
    (
      {'norm': 'batch', 'pool_layers': (), 'norm_hidden': (1,)},
      {
        'conv1': CONVS['conv1'],
        'norm1': 'batch norm',
        'conv2': CONVS['conv2'],
        'norm2': 'batch norm',
        'dense1': 'dense',
        'dense_norm1': 'batch norm',
        'head': 'dense',
      },
    ),
  ],
)
def test_layers_stand_in_order_with_what_they_do(fields, expected):
  model = AlexNet(**{**SMALL, **fields})
  _, rows = summary.layer_table(model, (36, 36, 3))
  words = {name: summary.operation(model, name) for name, *_ in rows}
  assert list(words.items()) == list(expected.items())


def test_shapes_parameters_and_flops_by_hand():
  params, rows = summary.layer_table(AlexNet(**SMALL), (36, 36, 3))
  outputs = {name: output for name, output, _ in rows}
  assert outputs == {
    'conv1': (18, 18, 8),
    'lrn1': (18, 18, 8),
    'pool1': (8, 8, 8),
    'conv2': (8, 8, 8),
    'lrn2': (8, 8, 8),
    'pool2': (3, 3, 8),
    'dense1': (12,),
    'head': (7,),
  }
  macs = {name: macs for name, _, macs in rows if macs}
  assert macs == {
    'conv1': 18 * 18 * 5 * 5 * 3 * 8,
    'conv2': 8 * 8 * 3 * 3 * 4 * 8,  # two groups: half of the channels each
    'dense1': 72 * 12,
    'head': 12 * 7,
  }
  kernels = 5 * 5 * 3 * 8 + 3 * 3 * 4 * 8 + 72 * 12 + 12 * 7
  assert summary.totals(params, rows) == {
    'parameters': kernels + 8 + 8 + 12 + 7,
    'forward_flops_per_image': 2 * sum(macs.values()),
    'training_flops_per_image': 6 * sum(macs.values()) - 2 * macs['conv1'],
  }
