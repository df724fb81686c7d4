"""Marvin: a small network on handwritten digits, without any download.

    python -m alexnet_jax.main --config configs/marvin.py

Two convolutions and two dense layers, with Adam, for ten epochs.
"""

from alexnet_jax.config import make_config
from alexnet_jax.models import variants


def get_config():
  config = make_config()
  config.num_epochs = 10.0
  config.global_batch_size = 128
  config.log_every_steps = 10

  config.data.resize_size = 28
  config.data.crop_size = 28
  config.data.random_flip = False
  config.data.std = 78.0  # about that of the digits

  config.model.update(variants.fields('marvin'))

  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 0.001
  config.optimizer.epsilon = 1e-7  # as in Keras
  config.optimizer.weight_decay = 0.0
  config.schedule.name = 'constant'
  return config
