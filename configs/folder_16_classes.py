r"""A folder of photographs with few images a class, in batches of two.

    python -m alexnet_jax.main --config configs/folder_16_classes.py \
      --config.data.path=DIR

The set-up of a notebook for 16 classes; it takes any number of them. A tenth of
each is held out; the rate is divided by 10 when the validation loss has not
improved for ten epochs. With `:bright` after the recipe's name the brightness
is shifted, too.
"""

from alexnet_jax.config import make_config
from alexnet_jax.models import variants


def get_config(augmentation=''):
  if augmentation not in ('', 'bright'):
    raise ValueError(f'{augmentation!r} is not `bright`')
  config = make_config()
  config.global_batch_size = 2
  config.data.source = 'folder'
  config.data.val_fraction = 0.1
  config.data.std = 58.0  # about that of photographs
  config.data.brightness = 0.2 if augmentation else 0.0
  config.model.update(variants.fields('alexnet_bn_all'))

  config.schedule.monitor = 'eval/loss'
  config.schedule.patience = 10
  config.schedule.min_learning_rate = 1e-6
  return config
