"""The table of a network: its layers in order of execution, and their sizes."""

import pytest

from alexnet_jax.evaluation import summary
from alexnet_jax.models import costs
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
WORDS = {
  'conv1': '5 x 5, stride 2, padding 2 and 1',
  'conv2': '3 x 3, stride 1, padding SAME, 2 groups',
  'lrn1': 'over 5 channels, 2 groups',
  'lrn2': 'over 5 channels, 2 groups',
  'pool1': 'largest of 3 x 3, stride 2',
  'pool2': 'largest of 3 x 3, stride 2',
  'spatial2': 'over 5 x 5',
  'norm1': 'batch norm',
  'norm2': 'batch norm',
  'dense_norm1': 'batch norm',
  'dense1': 'dense',
  'head': 'dense',
}


@pytest.mark.parametrize(
  ('fields', 'layers'),
  [
    # The orders of Caffe's net and of the paper's released code.
    (
      {
        'lrn_groups': 2,
        'block_order': ('relu-pool-norm', 'norm-pool-relu-spatial'),
        'hidden': (),
      },
      'conv1 pool1 lrn1 conv2 lrn2 pool2 spatial2 head',
    ),
    (
      {'norm': 'batch', 'pool_layers': (), 'norm_hidden': (1,)},
      'conv1 norm1 conv2 norm2 dense1 dense_norm1 head',
    ),
  ],
)
def test_layers_stand_in_order_with_what_they_do(fields, layers):
  model = AlexNet(**{**SMALL, **fields})
  _, rows = costs.layer_table(model, (36, 36, 3))
  words = [(name, summary.operation(model, name)) for name, *_ in rows]
  assert words == [(name, WORDS[name]) for name in layers.split()]


def test_shapes_parameters_and_flops_by_hand():
  params, rows = costs.layer_table(AlexNet(**SMALL), (36, 36, 3))
  assert rows == [
    ('conv1', (18, 18, 8), 18 * 18 * 5 * 5 * 3 * 8),
    ('lrn1', (18, 18, 8), 0),
    ('pool1', (8, 8, 8), 0),
    # Two groups: half of the channels each.
    ('conv2', (8, 8, 8), 8 * 8 * 3 * 3 * 4 * 8),
    ('lrn2', (8, 8, 8), 0),
    ('pool2', (3, 3, 8), 0),
    ('dense1', (12,), 72 * 12),
    ('head', (7,), 12 * 7),
  ]
  kernels = 5 * 5 * 3 * 8 + 3 * 3 * 4 * 8 + 72 * 12 + 12 * 7
  macs = sum(macs for *_, macs in rows)
  assert costs.totals(params, rows) == {
    'parameters': kernels + 8 + 8 + 12 + 7,
    'forward_flops_per_image': 2 * macs,
    'training_flops_per_image': 6 * macs - 2 * rows[0][2],
  }
