"""Handwritten digits: see a whole run in three minutes on a laptop.

python -m alexnet_jax.main --config configs/quickstart.py
"""

from alexnet_jax.config import make_config


def get_config():
  config = make_config()
  config.num_epochs = 15.0
  config.global_batch_size = 64
  config.log_every_steps = 50

  config.data.source = 'digits'
  config.data.resize_size = 40
  config.data.crop_size = 36
  config.data.random_flip = False  # a mirrored digit is another character

  config.model.kernels = (5, 5, 3, 3, 3)
  config.model.strides = (2, 1, 1, 1, 1)
  config.model.paddings = ('SAME', 'SAME', 'SAME', 'SAME', 'SAME')
  config.model.width_multiplier = 0.25
  config.model.kernel_init = 'he'
  config.model.positive_bias = 0.0
  config.data.std = 78.0

  config.optimizer.learning_rate = 0.01
  config.schedule.patience = 3
  return config
