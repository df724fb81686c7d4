"""What the keys of a config may be, key by key; see `validation`."""

from alexnet_jax.data.augment import CROPS
from alexnet_jax.data.augment import LIGHTING_UNITS
from alexnet_jax.data.sources import KINDS
from alexnet_jax.training.optimizer import OPTIMIZERS
from alexnet_jax.training.schedule import RATE_SCALINGS

CHOICES = {
  'parallel': ('pmap', 'shard_map'),
  'forms': ('auto', 'plain'),
  'reduction_dtype': ('float32', 'bfloat16'),
  'data.source': KINDS,
  'data.crop': CROPS,
  'data.colour_unit': LIGHTING_UNITS,
  'data.mean': ('channel', 'image', 'none'),
  'data.unreadable': ('stop', 'skip'),
  'model.dtype': ('float32', 'bfloat16'),
  'optimizer.name': OPTIMIZERS,
  'optimizer.update_rule': ('optax', 'paper'),
  'optimizer.decay': ('all', 'kernels'),
  'optimizer.rate_scaling': RATE_SCALINGS,
  'schedule.name': ('constant', 'plateau', 'step', 'cosine', 'recorded'),
  'schedule.mode': ('min', 'max'),
  'early_stopping.mode': ('min', 'max'),
  'checkpoint.mode': ('min', 'max'),
}
MONITORS = (
  *('eval/loss', 'eval/top1', 'eval/top5'),
  *('eval/macro_precision', 'eval/macro_recall', 'eval/macro_f1'),
  *('eval/weighted_precision', 'eval/weighted_recall', 'eval/weighted_f1'),
)
CHOICES |= {
  f'{room}.monitor': MONITORS
  for room in ('schedule', 'early_stopping', 'checkpoint')
}
# Numbers that must exceed zero, and those that may also be zero; of the
# network see `models.fields`.
POSITIVE = (
  'global_batch_size',
  'log_every_steps',
  'checkpoint.keep',
  'data.resize_size',
  'data.crop_size',
  'data.std',
  'data.synthetic_examples',
  'data.synthetic_classes',
  'optimizer.learning_rate',
  'optimizer.base_batch_size',
  'optimizer.bias_rate',
  'optimizer.epsilon',
  'optimizer.trust_coefficient',
  'schedule.patience',
  'early_stopping.patience',
)
NOT_NEGATIVE = (
  'seed',
  'num_epochs',
  'num_steps',
  'max_device_batch_size',
  'eval_every_epochs',
  'eval_every_steps',
  'save_every_epochs',
  'save_every_steps',
  'histogram_every_evals',
  'data.colour_shift',
  'data.colour_shift_epochs',
  'data.colour_shift_steps',
  'data.folds',
  'data.fold',
  'data.num_threads',
  'data.prefetch',
  'model.num_classes',
  'init.unfreeze_epochs',
  'init.unfreeze_steps',
  'loss.l1',
  'loss.l2',
  'optimizer.weight_decay',
  'schedule.threshold',
  'schedule.cooldown',
  'schedule.min_learning_rate',
  'schedule.warmup_epochs',
  'schedule.warmup_steps',
  'early_stopping.threshold',
  'guards.flat_loss_steps',
)
DURATIONS = (
  'num',
  'eval_every',
  'save_every',
  'init.unfreeze',
  'data.colour_shift',
  'schedule.warmup',
)
