"""Your own photographs."""

from alexnet_jax.config import make_config


def get_config():
  config = make_config()
  config.num_epochs = 60.0
  config.global_batch_size = 32
  config.log_every_steps = 20
  config.data.source = 'folder'
  config.data.resize_size = 128
  config.data.crop_size = 112
  config.data.std = 58.0
  config.model.kernels = (7, 5, 3, 3, 3)
  config.model.strides = (2, 1, 1, 1, 1)
  config.model.paddings = ('SAME',) * 5
  config.model.width_multiplier = 0.25
  config.model.kernel_init = 'he'
  config.model.positive_bias = 0.0
  config.optimizer.learning_rate = 0.01
  config.schedule.name = 'cosine'
  return config
