"""ImageNet in batches of 8,192 to 32,768, on however few devices there are.

    python -m alexnet_jax.main --config configs/imagenet_large_batch.py

For 32,768: --config.global_batch_size=32768 --config.data.prefetch=1
--config.optimizer.learning_rate=0.283. The rate goes with the root of the batch
(Krizhevsky 2014): 0.025 at 256, times sqrt(8192 / 256).

`alexnet_bn` with LARS (You, Gitman and Ginsburg 2017). Not measured here, for
want of ImageNet and a GPU. Others report 58.6 % top-1 at a batch of 32,768 with
LARS, and 58.7 % for AlexNet with batch norm (Jia et al. 2018).

A kernel's step, the trust coefficient of 0.1 times the rate, is 1.4 % of its
length at 8,192 and 2.8 % at 32,768; published solvers have 1.0 % (a rate of 10,
a coefficient of 0.001), a rate too large for biases and norms, which do not
adapt. On 4,000 digits, a quarter as wide, in batches of 1,000, one seed:
validation top-1 0.982, with a rate of 2.5 and a coefficient of 0.001 0.977.

The training is the same on more or fewer devices, up to rounding, if
config.microbatch_size times the devices stays. Two batches are on the devices:
2.5 GB in all at 8,192, 9.9 GB at 32,768; each has 0.5 GB of parameters and
velocity, and in a step 5.0 GB more in float32, 2.9 GB in bfloat16 (as compiled
for an H100). The host holds 6.2 GB at 8,192, 19.7 GB at 32,768.
"""

from alexnet_jax.config import make_config
from alexnet_jax.models import variants


def get_config():
  config = make_config()
  config.num_epochs = 100.0
  config.global_batch_size = 8192
  config.microbatch_size = 512
  config.log_every_steps = 10  # an epoch has 156
  config.data.source = 'tfds'
  config.data.std = 58.0  # about that of photographs
  config.model.update(variants.fields('alexnet_bn'))
  config.model.num_classes = 1000
  # Of few, large batches; Keras' 0.99 would remember most of an epoch.
  config.model.batch_norm_momentum = 0.9

  config.optimizer.name = 'optax.lars'
  config.optimizer.learning_rate = 0.025 * (8192 / 256) ** 0.5
  config.optimizer.arguments = (
    ('trust_coefficient', 0.1),
    ('trust_ratio_mask', 'kernels'),
    ('weight_decay', 5e-4),
    ('weight_decay_mask', 'kernels'),
  )

  config.schedule.name = 'cosine'
  config.schedule.warmup_epochs = 5.0
  return config
