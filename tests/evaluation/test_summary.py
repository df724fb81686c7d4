"""The network's table: what its layers do, in order of execution."""

import pytest

from alexnet_jax.evaluation.summary import layer_table
from alexnet_jax.evaluation.summary import operation
from alexnet_jax.models.alexnet import AlexNet

TOWERS = (1, 2, 1, 2, 2)
SMALL = {
  'num_classes': 7,
  'channels': (8, 8, 8, 8, 8),
  'kernels': (5, 3, 3, 3, 3),
  'strides': (2, 1, 1, 1, 1),
  'paddings': ('SAME',) * 5,
  'hidden': (12, 10),
}
# One convolution.
ONE = {
  'channels': (8,),
  'kernels': (5,),
  'strides': (1,),
  'paddings': ('SAME',),
  'groups': (1,),
  'pool_layers': (),
  'bias_layers': (),
}


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (
      {'hidden': (12,), 'paddings': (0, 1, (2, 1), 'SAME', 'SAME')},
      {
        'conv1': '5 x 5, stride 2, padding 0, ReLU',
        'lrn1': 'over 5 channels',
        'pool1': 'largest of 3 x 3, stride 2',
        'conv2': '3 x 3, stride 1, padding 1, ReLU',
        'lrn2': 'over 5 channels',
        'pool2': 'largest of 3 x 3, stride 2',
        'conv3': '3 x 3, stride 1, padding 2 and 1, ReLU',
        'conv4': '3 x 3, stride 1, padding SAME, ReLU',
        'conv5': '3 x 3, stride 1, padding SAME, ReLU',
        'pool5': 'largest of 3 x 3, stride 2',
        'dense1': 'dense, ReLU, dropout 0.5',
        'head': 'dense',
      },
    ),
    # The orders of Caffe's net, of the release's and of batch norm.
    (
      {
        'groups': TOWERS,
        'lrn_groups': 2,
        'block_order': ('relu-pool-norm', 'norm-pool-relu-spatial', '', '', ''),
        'pool_layers': (1, 2),
        'hidden': (),
      },
      {
        'conv1': '5 x 5, stride 2, padding SAME, ReLU',
        'pool1': 'largest of 3 x 3, stride 2',
        'lrn1': 'over 5 channels, 2 groups',
        'conv2': '3 x 3, stride 1, padding SAME, 2 groups',
        'lrn2': 'over 5 channels, 2 groups',
        'pool2': 'largest of 3 x 3, stride 2, ReLU',
        'spatial2': 'over 5 x 5',
        'conv3': '3 x 3, stride 1, padding SAME, ReLU',
        'conv4': '3 x 3, stride 1, padding SAME, 2 groups, ReLU',
        'conv5': '3 x 3, stride 1, padding SAME, 2 groups, ReLU',
        'head': 'dense',
      },
    ),
    (
      {
        **ONE,
        'norm': 'batch',
        'norm_layers': (1,),
        'norm_before_relu': True,
        'norm_hidden': (1,),
        'dropout_position': 'before',
      },
      {
        'conv1': '5 x 5, stride 1, padding SAME',
        'norm1': 'batch norm, ReLU',
        'dense1': 'dropout 0.5, dense',
        'dense_norm1': 'batch norm, ReLU',
        'dense2': 'dropout 0.5, dense, ReLU',
        'head': 'dense',
      },
    ),
    (
      {
        **ONE,
        'paddings': ('VALID',),
        'norm': 'batch',
        'norm_layers': (1,),
        'norm_hidden': (2,),
      },
      {
        'conv1': '5 x 5, stride 1, padding VALID, ReLU',
        'norm1': 'batch norm',
        'dense1': 'dense, ReLU, dropout 0.5',
        'dense2': 'dense, ReLU',
        'dense_norm2': 'batch norm, dropout 0.5',
        'head': 'dense',
      },
    ),
    (
      {
        **ONE,
        'norm': 'none',
        'norm_layers': (1,),
        'norm_before_relu': True,
        'hidden': (12,),
        'dropout': 0.0,
      },
      {
        'conv1': '5 x 5, stride 1, padding SAME, ReLU',
        'dense1': 'dense, ReLU',
        'head': 'dense',
      },
    ),
  ],
)
def test_the_summary_says_what_layers_do_and_in_which_order(fields, expected):
  model = AlexNet(**{**SMALL, **fields})
  _, rows = layer_table(model, (36, 36, 3))
  said = {name: operation(model, name) for name, *_ in rows}
  assert list(said.items()) == list(expected.items())
