"""AlexNet with batch norm on ImageNet, as a Keras notebook trains it.

    python -m alexnet_jax.main --config configs/keras_prototype.py

Batch norm before the ReLU of the first two convolutions, or with
`:alexnet_bn_all` after the recipe's name after that of all five. On your own
photographs: --config.data.source=folder --config.data.path=DIR
--config.model.num_classes=0. Not measured on ImageNet.
"""

from alexnet_jax.config import make_config
from alexnet_jax.models import variants


def get_config(network='alexnet_bn'):
  config = make_config()
  config.data.source = 'tfds'
  config.data.std = 58.0  # about that of photographs
  config.model.update(variants.fields(network))
  config.model.num_classes = 1000

  config.optimizer.update_rule = 'paper'  # as Keras' SGD
  config.optimizer.weight_decay = 0.0
  config.schedule.patience = 2
  config.schedule.min_learning_rate = 1e-7
  config.early_stopping.enabled = True
  return config
