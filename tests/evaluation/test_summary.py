"""The table of a network: its layers in order of execution, and their sizes."""

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
