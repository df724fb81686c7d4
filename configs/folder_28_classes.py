r"""A folder of photographs in large batches, without normalization or dropout.

    python -m alexnet_jax.main --config configs/folder_28_classes.py \
      --config.data.path=DIR

The set-up of a PyTorch notebook for 28 classes; it takes any number of them.
"""

from alexnet_jax.config import make_config
from alexnet_jax.models import variants


def get_config():
  config = make_config()
  config.global_batch_size = 150
  config.log_every_steps = 10
  config.data.source = 'folder'
  config.data.val_fraction = 0.1
  config.data.crop_size = 227
  config.data.std = 58.0  # about that of photographs
  config.model.update(variants.fields('alexnet_plain'))
  config.optimizer.weight_decay = 0.0
  config.schedule.name = 'constant'
  return config
