"""ImageNet (ILSVRC-2012): the mission.

python -m alexnet_jax.main --config configs/imagenet.py
"""

from alexnet_jax.config import make_config


def get_config():
  config = make_config()
  config.num_epochs = 90.0
  config.global_batch_size = 128

  config.data.source = 'tfds'
  config.data.tfds_name = 'imagenet2012'

  config.model.num_classes = 1000
  config.model.kernel_init = 'caffe'
  config.model.positive_bias = 0.1
  return config
