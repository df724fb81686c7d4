"""Checks every value of a config that needs neither data nor devices."""

from collections.abc import Sequence
import difflib
import math

import ml_collections

from alexnet_jax.config import flatten
from alexnet_jax.config import make_config
from alexnet_jax.data.pipeline import CROPS
from alexnet_jax.data.sources import KINDS
from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import DROPOUT_PLACES
from alexnet_jax.models.alexnet import NORMS
from alexnet_jax.models.layers import KERNEL_INITS
from alexnet_jax.models.normalization import LRN_CONVENTIONS
from alexnet_jax.training.optimizer import OPTIMIZERS
from alexnet_jax.training.schedule import RATE_SCALINGS

CHOICES = {
  'parallel': ('pmap', 'shard_map'),
  'forms': ('auto', 'plain'),
  'reduction_dtype': ('float32', 'bfloat16'),
  'data.source': KINDS,
  'data.crop': CROPS,
  'data.mean': ('channel', 'image', 'none'),
  'data.unreadable': ('stop', 'skip'),
  'model.norm': NORMS,
  'model.lrn_convention': LRN_CONVENTIONS,
  'model.kernel_init': KERNEL_INITS,
  'model.dropout_place': DROPOUT_PLACES,
  'model.dtype': ('float32', 'bfloat16'),
  'optimizer.name': OPTIMIZERS,
  'optimizer.update_rule': ('optax', 'paper'),
  'optimizer.decay': ('all', 'kernels'),
  'optimizer.rate_scaling': RATE_SCALINGS,
  'schedule.name': ('constant', 'plateau', 'step', 'cosine'),
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
# Numbers that must exceed zero, and those that may also be zero.
POSITIVE = (
  'global_batch_size',
  'log_every_steps',
  'checkpoint.keep',
  'data.resize_size',
  'data.crop_size',
  'data.std',
  'data.synthetic_examples',
  'data.synthetic_classes',
  'model.width_multiplier',
  'model.pool_size',
  'model.pool_stride',
  'model.lrn_size',
  'model.lrn_k',
  'model.batch_norm_epsilon',
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
  'schedule.warmup',
)


def unknown_key_message(key: str, known: Sequence[str]) -> str:
  """Says that `config.key` does not exist and which key is nearest."""
  leaves = {name.rsplit('.', 1)[-1]: name for name in known}
  near = difflib.get_close_matches(key, known, 1, 0.6) or [
    leaves[leaf]
    for leaf in difflib.get_close_matches(
      key.rsplit('.', 1)[-1], leaves, 1, 0.6
    )
  ]
  hint = f'; did you mean config.{near[0]}?' if near else ''
  return f'there is no key config.{key}{hint}'


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every value that can be checked without data or devices.

  Raises:
    UserError: naming the key, the value received and what is allowed.
  """
  flat = flatten(config)
  known = flatten(make_config())
  for key in flat:
    if key not in known:
      raise UserError(unknown_key_message(key, known))
  for key, choices in CHOICES.items():
    if flat[key] not in choices:
      raise UserError(f'config.{key} is {flat[key]!r}, not one of {choices}')
  for key in POSITIVE:
    _check(flat, key, flat[key] > 0, 'must be greater than 0')
  for key in NOT_NEGATIVE:
    _check(flat, key, flat[key] >= 0, 'must not be negative')
  _check_ranges(flat)
  _check_durations(flat)
  _check_layers(flat)
  _check_training(flat)


def _check(flat, key, passed, rule):
  finite = not isinstance(flat[key], float) or math.isfinite(flat[key])
  if not (passed and finite):
    raise UserError(f'config.{key} is {flat[key]!r}; it {rule}')


def _check_ranges(flat):
  for key in (
    'ema_decay',
    'data.brightness',
    'loss.label_smoothing',
    'optimizer.momentum',
    'optimizer.b1',
    'optimizer.b2',
    'optimizer.rms_decay',
    'model.dropout',
    'model.batch_norm_momentum',
  ):
    _check(flat, key, 0 <= flat[key] < 1, 'must be at least 0 and below 1')
  for key in ('data.val_fraction', 'schedule.factor'):
    _check(flat, key, 0 < flat[key] < 1, 'must lie between 0 and 1')
  for key, least, most in (
    ('data.crop_area', 0.0001, 1),
    ('data.crop_ratio', 0.01, 100),
  ):
    value = flat[key]
    good = (
      len(value) == 2
      and all(isinstance(v, (int, float)) for v in value)
      and least <= value[0] <= value[1] <= most
    )
    rule = f'takes (smallest, largest), both from {least} to {most}'
    _check(flat, key, good, rule)
  _check(
    flat,
    'data.crop_size',
    flat['data.crop_size'] <= flat['data.resize_size'],
    f'must not exceed config.data.resize_size = {flat["data.resize_size"]}',
  )
  _check(
    flat,
    'data.path',
    flat['data.path'] or flat['data.source'] in ('digits', 'tfds', 'synthetic'),
    f'must name the folder of the {flat["data.source"]} set:'
    ' --config.data.path=DIR',
  )


def _check_durations(flat):
  for name in DURATIONS:
    epochs, steps = f'{name}_epochs', f'{name}_steps'
    if flat[epochs] and flat[steps]:
      raise UserError(
        f'config.{epochs} = {flat[epochs]} and config.{steps} = {flat[steps]}'
        f' both give a duration; set one of them to 0'
      )
  for name in ('num', 'eval_every'):
    if not flat[f'{name}_epochs'] and not flat[f'{name}_steps']:
      raise UserError(f'set config.{name}_epochs or config.{name}_steps')
  drops = 'schedule.drop_epochs', 'schedule.drop_steps'
  if flat[drops[0]] and flat[drops[1]]:
    raise UserError(f'set config.{drops[0]} or config.{drops[1]}, not both')
  if flat['schedule.name'] == 'step' and not (flat[drops[0]] or flat[drops[1]]):
    raise UserError(
      f'config.schedule.name is step: set config.{drops[0]} or'
      f' config.{drops[1]}'
    )


def _check_layers(flat):
  count = len(flat['model.channels'])
  for name in ('kernels', 'strides', 'paddings', 'groups'):
    value = flat[f'model.{name}']
    if len(value) != count:
      raise UserError(
        f'config.model.{name} is {value!r}: {len(value)} entries for'
        f' {count} convolutions'
      )
  for name in ('channels', 'kernels', 'strides', 'groups', 'hidden'):
    value = flat[f'model.{name}']
    if any(not isinstance(n, int) or n < 1 for n in value):
      raise UserError(
        f'config.model.{name} is {value!r}; it takes whole numbers from 1'
      )
  for padding in flat['model.paddings']:
    if isinstance(padding, str) and padding not in ('SAME', 'VALID'):
      raise UserError(
        f'config.model.paddings has {padding!r}; it takes SAME, VALID, a number'
        ' or (before, after)'
      )
  hidden = len(flat['model.hidden'])
  for name, last in (
    ('pool_layers', count),
    ('norm_layers', count),
    ('bias_layers', count),
    ('norm_hidden', hidden),
  ):
    value = flat[f'model.{name}']
    if any(not 1 <= number <= last for number in value):
      raise UserError(
        f'config.model.{name} is {value!r}; layers count from 1 to {last}'
      )
  if flat['model.lrn_size'] % 2 != 1:
    raise UserError(f'config.model.lrn_size is {flat["model.lrn_size"]}, even')


def _check_training(flat):
  folds, fold = flat['data.folds'], flat['data.fold']
  _check(flat, 'data.folds', folds != 1, 'must be 0 or at least 2')
  _check(
    flat,
    'data.fold',
    fold < max(1, folds),
    f'must be less than config.data.folds = {folds}',
  )
  if flat['optimizer.decoupled_decay'] and (
    flat['optimizer.update_rule'] == 'paper'
  ):
    raise UserError(
      'config.optimizer.decoupled_decay is True, but the update rule of the'
      ' paper has the decay in the velocity; give'
      ' --config.optimizer.update_rule=optax'
    )
  if flat['optimizer.name'] == 'adam':
    for key, plain in (('nesterov', False), ('update_rule', 'optax')):
      key = f'optimizer.{key}'
      _check(flat, key, flat[key] == plain, 'has no effect on adam')
  for key in ('init.skip', 'init.freeze'):
    good = all(isinstance(p, str) and p for p in flat[key])
    _check(flat, key, good, "takes patterns: ('conv*', 'dense1/kernel')")
  if flat['init.skip'] and not flat['init.workdir']:
    raise UserError(
      f'config.init.skip is {flat["init.skip"]!r}, but config.init.workdir'
      ' names no run to start from'
    )
  if not flat['init.freeze'] and (
    flat['init.unfreeze_epochs'] or flat['init.unfreeze_steps']
  ):
    raise UserError(
      'config.init.unfreeze_epochs or unfreeze_steps is set, but'
      ' config.init.freeze names nothing'
    )
