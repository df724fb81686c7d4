"""Every config key with its default and meaning, and the checks on them."""

from collections.abc import Sequence
import difflib
import json
import math
import pathlib

from absl import flags
import ml_collections
from ml_collections import config_flags

from alexnet_jax.errors import UserError

CONFIG_FILE = 'config.json'  # in the folder of a run

CHOICES = {
  'parallel': ('pmap', 'shard_map'),
  'data.source': ('digits', 'folder', 'tfds', 'synthetic'),
  'data.mean': ('channel', 'image', 'none'),
  'data.unreadable': ('stop', 'skip'),
  'model.norm': ('lrn', 'batch', 'none'),
  'model.lrn_convention': ('paper', 'caffe'),
  'model.kernel_init': (
    'paper',
    'source_release',
    'caffe',
    'he',
    'glorot',
    'lecun',
  ),
  'model.dtype': ('float32', 'bfloat16'),
  'optimizer.update_rule': ('optax', 'paper'),
  'optimizer.decay': ('all', 'kernels'),
  'schedule.name': ('constant', 'plateau', 'step', 'cosine'),
  'schedule.mode': ('min', 'max'),
  'early_stopping.mode': ('min', 'max'),
  'checkpoint.mode': ('min', 'max'),
}
MONITORS = ('eval/loss', 'eval/top1', 'eval/top5')
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
  'optimizer.learning_rate',
  'optimizer.bias_rate',
  'schedule.patience',
  'early_stopping.patience',
)
NOT_NEGATIVE = (
  'seed',
  'num_epochs',
  'num_steps',
  'eval_every_epochs',
  'eval_every_steps',
  'save_every_epochs',
  'save_every_steps',
  'histogram_every_evals',
  'data.num_threads',
  'data.prefetch',
  'model.num_classes',
  'optimizer.weight_decay',
  'schedule.threshold',
  'schedule.cooldown',
  'schedule.min_learning_rate',
  'schedule.warmup_epochs',
  'schedule.warmup_steps',
  'early_stopping.threshold',
  'guards.flat_loss_steps',
)
DURATIONS = ('num', 'eval_every', 'save_every', 'schedule.warmup')
# Keys that a resumed run may change: they leave the training as it is. The
# number of epochs is one of them unless the schedule depends on it.
FREE_KEYS = (
  'num_epochs',
  'num_steps',
  'log_every_steps',
  'save_every_epochs',
  'save_every_steps',
  'histogram_every_evals',
  'parallel',
  'data.path',
  'data.num_threads',
  'data.prefetch',
  'checkpoint.keep',
  'guards.flat_loss_steps',
)


def make_config() -> ml_collections.ConfigDict:
  """The defaults: AlexNet with LRN in one tower, trained as in the paper.

  Durations carry their unit: of `X_epochs` and `X_steps` one is 0.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0  # of the order, the crops, the initialisation, the dropout
  config.num_epochs = 90.0
  config.num_steps = 0
  config.global_batch_size = 128  # over all devices
  config.eval_every_epochs = 1.0
  config.eval_every_steps = 0
  config.save_every_epochs = 0.0  # besides the saves after each evaluation
  config.save_every_steps = 0
  config.log_every_steps = 50
  config.histogram_every_evals = 5  # of parameters and gradients; 0: never
  config.parallel = 'pmap'  # or shard_map: the same numbers

  config.data = data = ml_collections.ConfigDict()
  data.source = 'digits'  # digits, folder, tfds or synthetic
  data.path = ''  # the folder, or the data_dir of TFDS ('': its default)
  data.tfds_name = 'imagenet2012'
  data.tfds_train_split = 'train'
  data.tfds_eval_split = 'validation'
  data.val_fraction = 0.2  # held out of each class where there is no val/
  data.split_seed = 0
  data.resize_size = 256  # the short side; its centre square is kept
  data.crop_size = 224
  data.random_crop = True  # in training; evaluation takes the centre
  data.random_flip = True
  data.mean = 'channel'  # subtracted: per channel, the mean image, or none
  data.std = 1.0  # one divisor for all pixels after the mean
  data.unreadable = 'stop'  # or skip: the next example takes the place
  data.num_threads = 0  # decoding threads; 0: one per core
  data.prefetch = 2  # batches made ahead
  data.synthetic_examples = 1024
  data.synthetic_classes = 10

  config.model = model = ml_collections.ConfigDict()
  model.num_classes = 0  # 0: as many as the data set has
  model.channels = (96, 256, 384, 384, 256)
  model.kernels = (11, 5, 3, 3, 3)
  model.strides = (4, 1, 1, 1, 1)
  model.paddings = ((2, 1), 'SAME', 'SAME', 'SAME', 'SAME')
  model.groups = (1, 1, 1, 1, 1)  # (1, 2, 1, 2, 2): the paper's two towers
  model.pool_layers = (1, 2, 5)  # convolutions that a max-pool follows
  model.pool_size = 3
  model.pool_stride = 2
  model.norm = 'lrn'  # lrn, batch or none
  model.norm_layers = (1, 2)  # convolutions that are normalised
  model.norm_before_relu = False
  model.lrn_size = 5
  model.lrn_k = 2.0
  model.lrn_alpha = 1e-4
  model.lrn_beta = 0.75
  model.lrn_convention = 'paper'  # caffe divides alpha by lrn_size
  model.hidden = (4096, 4096)
  model.dropout = 0.5
  model.width_multiplier = 1.0
  model.kernel_init = 'paper'
  model.positive_bias = 1.0  # where the paper starts biases at 1
  model.bias_layers = (2, 4, 5)
  model.dtype = 'float32'  # of the computation; parameters are float32

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.learning_rate = 0.01
  optimizer.momentum = 0.9
  optimizer.nesterov = False
  optimizer.weight_decay = 5e-4
  optimizer.decay = 'all'  # or kernels: biases and norms do not decay
  optimizer.bias_rate = 1.0  # factor on the rate of biases; Caffe's is 2
  optimizer.update_rule = 'optax'  # paper: the rate inside the velocity

  config.schedule = schedule = ml_collections.ConfigDict()
  schedule.name = 'plateau'  # constant, plateau, step or cosine
  schedule.monitor = 'eval/top1'
  schedule.mode = 'max'
  schedule.factor = 0.1  # of a drop
  schedule.patience = 5  # evaluations
  schedule.threshold = 1e-4  # what counts as better
  schedule.cooldown = 0  # evaluations
  schedule.min_learning_rate = 0.0
  schedule.drop_epochs = ()  # of `step`
  schedule.drop_steps = ()
  schedule.warmup_epochs = 0.0
  schedule.warmup_steps = 0

  config.early_stopping = stopping = ml_collections.ConfigDict()
  stopping.enabled = False
  stopping.monitor = 'eval/top1'
  stopping.mode = 'max'
  stopping.threshold = 0.0
  stopping.patience = 10  # evaluations
  stopping.restore_best = True  # the run ends with the best state

  config.checkpoint = checkpoint = ml_collections.ConfigDict()
  checkpoint.keep = 2  # newest; the best is kept besides
  checkpoint.monitor = 'eval/top1'
  checkpoint.mode = 'max'

  config.guards = guards = ml_collections.ConfigDict()
  guards.flat_loss_steps = 500  # then warn of a loss at ln(classes); 0: never
  return config


def load_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """Reads a recipe and its overrides.

  Args:
    arguments: `--config=FILE` and any `--config.key=value`.

  Returns:
    The recipe's config with the overrides, validated.

  Raises:
    UserError: if the recipe is missing, a key unknown or a value refused.
  """
  values = flags.FlagValues()
  command_line = ['alexnet_jax', *arguments]
  config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=command_line
  )
  path = next(
    a.split('=', 1)[1] for a in arguments if a.startswith('--config=')
  )
  if not pathlib.Path(path.split(':')[0]).is_file():
    raise UserError(f'no recipe at {path!r}; give --config FILE.py')
  try:
    rest = values(command_line)[1:]
    config = values['config'].value
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_key(arguments, error)) from error
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(f'config: {error}') from error
  if rest:
    raise UserError(f'arguments not understood: {" ".join(rest)}')
  validate(config)
  return config


def _unknown_key(arguments, error) -> str:
  """Names the first override that no key answers to, and the nearest key."""
  known = flatten(make_config())
  for argument in arguments:
    key = argument.split('=')[0].removeprefix('--config.')
    if argument.startswith('--config.') and key not in known:
      return unknown_key_message(key, known)
  return f'config: {error}'


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


def flatten(config, prefix: str = '') -> dict:
  """{'data.path': value, ...} of a nested config or dict."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


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


def _check(flat, key, passed, rule):
  finite = not isinstance(flat[key], float) or math.isfinite(flat[key])
  if not (passed and finite):
    raise UserError(f'config.{key} is {flat[key]!r}; it {rule}')


def _check_ranges(flat):
  for key in ('optimizer.momentum', 'model.dropout'):
    _check(flat, key, 0 <= flat[key] < 1, 'must be at least 0 and below 1')
  for key in ('data.val_fraction', 'schedule.factor'):
    _check(flat, key, 0 < flat[key] < 1, 'must lie between 0 and 1')
  _check(
    flat,
    'data.crop_size',
    flat['data.crop_size'] <= flat['data.resize_size'],
    f'must not exceed config.data.resize_size = {flat["data.resize_size"]}',
  )
  _check(
    flat,
    'data.path',
    flat['data.path'] or flat['data.source'] != 'folder',
    'must name the folder of photographs: --config.data.path=DIR',
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
  for name in ('pool_layers', 'norm_layers', 'bias_layers'):
    value = flat[f'model.{name}']
    if any(not 1 <= number <= count for number in value):
      raise UserError(
        f'config.model.{name} is {value!r}; layers count from 1 to {count}'
      )
  if flat['model.lrn_size'] % 2 != 1:
    raise UserError(f'config.model.lrn_size is {flat["model.lrn_size"]}, even')


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as JSON, keys sorted; `from_json` is its inverse."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ml_collections.ConfigDict:
  """The config that `to_json` wrote; keys it lacks have their defaults."""
  config = make_config()
  config.update(_tuples(json.loads(text)))
  return config


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value


def training_changes(
  stored: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> list[str]:
  """Lines `key: stored -> new` of the keys that would change the training."""
  before, after = flatten(stored), flatten(config)
  free = set(FREE_KEYS)
  if config.schedule.name == 'cosine':  # its shape depends on the end
    free -= {'num_epochs', 'num_steps'}
  return [
    f'config.{key}: {before[key]!r} -> {after[key]!r}'
    for key in sorted(after)
    if key not in free and before[key] != after[key]
  ]


def steps_of(
  config: ml_collections.ConfigDict, name: str, steps_per_epoch: float
) -> float:
  """Resolves the duration `name_epochs` or `name_steps` to steps (0: none)."""
  if config[f'{name}_steps']:
    return config[f'{name}_steps']
  epochs = config[f'{name}_epochs']
  return max(1.0, epochs * steps_per_epoch) if epochs else 0
