r"""Your own photographs with the weights of another run, a new head.

    python -m alexnet_jax.main --config configs/finetune.py:runs/OTHER \
      --config.data.path=DIR

Of any run, also of weights of elsewhere (`interop.load`): network, size, mean
(of a mean image that of its channels) and deviation are its. All layers train
at a tenth of the usual learning rate. This leaves the convolutions as they are
(`'norm*'` only of batch norm):

    --config.init.freeze="('conv*', 'norm*')"

To train them after some epochs, start from that run with all its layers:
`finetune.py:THAT_RUN --config.init.skip="()"`.
"""

import numpy as np

from alexnet_jax import config as config_lib, validation
from alexnet_jax.training import build


def get_config(workdir=''):
  if not workdir:
    raise ValueError('name the other run: --config configs/finetune.py:DIR')
  there = validation.read_config(workdir)
  config = config_lib.make_config()
  config.num_epochs = 20.0
  config.global_batch_size = 32
  config.log_every_steps = 20

  config.model.update(there.model)
  config.model.num_classes = 0
  config.data.source = 'folder'
  keys = ('resize_size', 'crop_size', 'channels', 'std', 'std_rgb')
  for key in keys:
    config.data[key] = there.data[key]
  if there.data.mean == 'none':
    config.data.mean = 'none'
  else:  # of a mean image the mean of each channel
    mean = np.float64(build.stored_mean(there, workdir))
    axes = tuple(range(mean.ndim - 1))
    config.data.mean_rgb = tuple(mean.mean(axes).tolist())

  config.init.workdir = workdir
  config.init.skip = ('head',)
  config.optimizer.learning_rate = 0.001
  config.schedule.name = 'cosine'
  config.schedule.warmup_epochs = 1.0
  return config
