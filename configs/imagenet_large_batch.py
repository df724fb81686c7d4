"""ImageNet in batches of 8,192 to 32,768, on however few devices there are.

    python -m alexnet_jax.main --config configs/imagenet_large_batch.py
    python -m alexnet_jax.main --config configs/imagenet_large_batch.py \
      --workdir runs/imagenet_32k --config.global_batch_size=32768 \
      --config.data.prefetch=1

`alexnet_bn` (batch norm in place of LRN) with LARS (You, Gitman and Ginsburg
2017), whose step is a share of the length of each kernel, whatever the
gradient's. Not measured here, for want of ImageNet and a GPU. Others report
58.6 % top-1 at a batch of 32,768 with LARS, and 58.7 % for AlexNet with batch
norm (Jia et al. 2018).

Optimizer. The rate grows with the root of the batch, 0.025 at 256: 0.14 at
8,192 and 0.28 at 32,768, so that a kernel's step (the trust coefficient of 0.1
times the rate) is 1.4 % and 2.8 % of its length. Published solvers of this
network have a rate of 10 at 8,192 with a coefficient of 0.001, 1.0 %: the same
for kernels, but here biases and norms, which neither adapt nor decay, have a
rate that plain SGD could have. The rate rises for five epochs, and falls as a
cosine to 0 at the end of 100. On 4,000 digits, a quarter as wide, in batches of
1,000 for 40 epochs (one seed), validation top-1 was 0.982; with a rate of 2.5
and a coefficient of 0.001 it was 0.977.

Devices. A device computes at most 512 images at a time, and adds up the
gradients. Batch norm takes the statistics of such a microbatch over all
devices. With more or fewer of them the training is the same, up to rounding, if
config.microbatch_size times the devices stays.

Memory. Two batches are on the devices: 2.5 GB in all at 8,192, 9.9 GB at
32,768, each device its share; each has 0.5 GB of parameters and velocity, and
during a step 5.0 GB more in float32 and 2.9 GB in bfloat16, whatever the batch,
in the program that XLA compiles for an H100. On the host there are
config.data.prefetch + 3 batches: 6.2 GB at 8,192, 19.7 GB at 32,768 with a
prefetch of 1.
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

  config.optimizer.name = 'lars'
  config.optimizer.update_rule = 'paper'  # as LARS was published
  config.optimizer.learning_rate = 0.025
  config.optimizer.rate_scaling = 'sqrt'
  config.optimizer.trust_coefficient = 0.1
  config.optimizer.decay = 'kernels'

  config.schedule.name = 'cosine'
  config.schedule.warmup_epochs = 5.0
  return config
