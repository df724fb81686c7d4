r"""Any named network on your own photographs, at small crops, to compare them.

    for NETWORK in narrow_alexnet flat_alexnet alexnet_bn; do
      python -m alexnet_jax.main --config configs/compare.py:$NETWORK \
        --workdir runs/$NETWORK --config.data.path=DIR
    done
    python -m alexnet_jax.evaluation.compare runs/*_alexnet runs/alexnet_bn

Crops of 64 out of 72 pixels, a quarter of each network's widths, half of its
first stride: minutes on a CPU. `flat_alexnet_high_stride` needs more pixels:
--config.data.resize_size=128 --config.data.crop_size=112.

On 922 + 360 photographs of groceries in 12 classes, validation top-1 of seeds
0, 1 and 2: `narrow_alexnet` 0.553, 0.525, 0.583; `flat_alexnet` 0.664, 0.658,
0.592; `alexnet_bn` 0.656, 0.631, 0.650; at most five minutes a run, two cores.
"""

from alexnet_jax.config import make_config
from alexnet_jax.models import variants


def get_config(network='alexnet_one_tower'):
  config = make_config()
  config.num_epochs = 40.0
  config.global_batch_size = 16
  config.data.source = 'folder'
  config.data.resize_size = 72
  config.data.crop_size = 64
  config.data.std = 58.0  # about that of photographs

  config.model.update(variants.fields(network))
  strides = config.model.strides
  config.model.strides = (max(1, strides[0] // 2), *strides[1:])
  config.model.width_multiplier = 0.25
  config.model.kernel_init = 'he'
  config.model.bias_init = 0.0

  config.schedule.name = 'cosine'
  config.schedule.warmup_epochs = 3.0
  return config
