"""Every config key: default, meaning and allowed values; recipes; durations.

`validation.load_config` reads a recipe with its overrides and checks it.
"""

from collections.abc import Callable
import dataclasses
import fractions
import json
import math
import os
import pathlib
import sys

import ml_collections

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.models import spec

CONFIG_FILE = 'config.json'  # in the folder of a run
_LARGEST = sys.float_info.max


@dataclasses.dataclass(frozen=True)
class Rule:
  """A condition on the value of one key.

  Attributes:
    text: completes the message `config.key is value; it ...`.
    holds: returns True for values that are allowed.
  """

  text: str
  holds: Callable[[object], bool]


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of the config.

  Attributes:
    default: its value unless a recipe or an override changes it.
    allowed: the values to choose from, or a rule; None: checked elsewhere.
    free: True if a resumed run may change it, as the training stays the same.
  """

  default: object
  allowed: tuple | Rule | None = None
  free: bool = False


def is_number(value) -> bool:
  """Returns True for a finite number; a recipe can set any key to None."""
  return isinstance(value, (int, float)) and abs(value) <= _LARGEST


def _numbers(rule, text):
  return Rule(text, lambda value: is_number(value) and rule(value))


def _sequences(text, lengths, rule):
  return Rule(
    text,
    lambda values: (
      isinstance(values, (tuple, list))
      and len(values) in lengths
      and all(map(is_number, values))
      and rule(values)
    ),
  )


def _span(least, most):
  return _sequences(
    f'takes (smallest, largest), both from {least} to {most}',
    (2,),
    lambda values: least <= values[0] <= values[1] <= most,
  )


_POSITIVE = _numbers(lambda value: value > 0, 'must be greater than 0')
_NOT_NEGATIVE = _numbers(lambda value: value >= 0, 'must not be negative')
_SHARE = _numbers(
  lambda value: 0 <= value < 1, 'must be at least 0 and below 1'
)
_FRACTION = _numbers(lambda value: 0 < value < 1, 'must lie between 0 and 1')
_PATTERNS = Rule(
  "takes patterns: ('conv*', 'dense1/kernel')",
  lambda values: all(isinstance(v, str) and v for v in values),
)
_MODES = ('min', 'max')
MONITORS = (
  'eval/loss',
  'eval/top1',
  'eval/top5',
  'eval/macro_precision',
  'eval/macro_recall',
  'eval/macro_f1',
  'eval/weighted_precision',
  'eval/weighted_recall',
  'eval/weighted_f1',
)

# Durations carry their unit: of `X_epochs` and `X_steps` one is 0.
DURATIONS = (
  'num',
  'eval_every',
  'save_every',
  'init.unfreeze',
  'data.pca_lighting',
  'schedule.warmup',
)

_RUN = {
  'seed': Key(0, _NOT_NEGATIVE),  # order, crops, initialization, dropout
  'num_epochs': Key(90.0, _NOT_NEGATIVE, free=True),
  'num_steps': Key(0, _NOT_NEGATIVE, free=True),
  'global_batch_size': Key(128, _POSITIVE),  # over all devices of all processes
  # Largest number of examples that a device computes at a time; 0: its whole
  # part of a batch. The part is cut into the smallest number of equal
  # microbatches, and their gradients make one update. Batch norm takes the
  # statistics of each microbatch, over all devices, and its running averages
  # move with each: with it the training depends on the number of microbatches,
  # but on nothing else about the devices.
  'microbatch_size': Key(0, _NOT_NEGATIVE, free=True),
  'eval_every_epochs': Key(1.0, _NOT_NEGATIVE),
  'eval_every_steps': Key(0, _NOT_NEGATIVE),
  # Saves in addition to the one after each evaluation.
  'save_every_epochs': Key(0.0, _NOT_NEGATIVE, free=True),
  'save_every_steps': Key(0, _NOT_NEGATIVE, free=True),
  'log_every_steps': Key(50, _POSITIVE, free=True),
  # Histograms of parameters and gradients; 0: never.
  'histogram_every_evals': Key(5, _NOT_NEGATIVE, free=True),
  'report': Key(True, free=True),  # tables and pictures at the end of a run
  'parallel': Key('pmap', ('pmap', 'shard_map'), free=True),  # same numbers
  # dtype of the gradient all-reduce; bfloat16 halves the traffic.
  'grad_allreduce_dtype': Key('float32', ('float32', 'bfloat16')),
  # The network's operations: auto, the fastest known for the device, or
  # reference, as one writes them first. They agree up to rounding.
  'implementation': Key('auto', ('auto', 'reference'), free=True),
  'ema_decay': Key(0.0, _SHARE),  # of averaged weights for evaluation; 0: none
}

_DATA = {
  'source': Key(
    'digits',
    ('digits', 'folder', 'tfds', 'tar', 'parquet', 'raw', 'synthetic'),
  ),
  # The data's folder; of tfds the data_dir ('': its default).
  'path': Key('', free=True),
  'tfds_name': Key('imagenet2012'),
  'tfds_train_split': Key('train'),
  'tfds_eval_split': Key('validation'),
  # Held out of each class where the data has no validation split.
  'val_fraction': Key(0.2, _FRACTION),
  'split_seed': Key(0),
  'folds': Key(0, _NOT_NEGATIVE),  # cross-validation; 0: the data's own split
  'fold': Key(0, _NOT_NEGATIVE),  # the one held out, from 0
  'resize_size': Key(256, _POSITIVE),  # short side; its center square is kept
  'crop_size': Key(224, _POSITIVE),
  # Of training; evaluation always takes the center.
  'crop': Key('random', ('random', 'center', 'random_resized')),
  'crop_area': Key((0.08, 1.0), _span(0.0001, 1)),  # of random_resized: share
  'crop_ratio': Key((3 / 4, 4 / 3), _span(0.01, 100)),  # its width / height
  'random_flip': Key(True),
  'brightness': Key(0.0, _SHARE),  # largest random shift, as a share of white
  # Standard deviation of the draws along the principal components of the
  # colors; 0.1 in the paper. Each is scaled by the variance along it
  # (eigenvalue, of pixels as shares of white) or by the deviation, as in the
  # source release.
  'pca_lighting': Key(0.0, _NOT_NEGATIVE),
  'pca_lighting_unit': Key('eigenvalue', ('eigenvalue', 'deviation')),
  # While lighting is on, pixels after the mean are divided by 1 + pca_lighting,
  # as in the source release.
  'pca_lighting_shrink': Key(False),
  'pca_lighting_epochs': Key(0.0, _NOT_NEGATIVE),  # then off; both 0: never off
  'pca_lighting_steps': Key(0, _NOT_NEGATIVE),
  'scaled_decoding': Key(True),  # of training JPEGs at least twice too large
  # Subtracted: the mean per channel, the mean image, or nothing.
  'mean': Key('channel', ('channel', 'image', 'none')),
  'mean_rgb': Key(  # of `channel`: three levels instead of the data's own
    (),
    _sequences(
      'takes three levels of 255, or ()',
      (0, 3),
      lambda values: all(0 <= v <= 255 for v in values),
    ),
  ),
  'std': Key(1.0, _POSITIVE),  # one divisor for all pixels after the mean
  'std_rgb': Key(  # three divisors instead, one for each channel
    (),
    _sequences(
      'takes three numbers above 0, or ()',
      (0, 3),
      lambda values: all(v > 0 for v in values),
    ),
  ),
  # skip: the next example takes the place of one that cannot be read.
  'unreadable': Key('stop', ('stop', 'skip')),
  'num_threads': Key(0, _NOT_NEGATIVE, free=True),  # 0: one per core
  'prefetch': Key(2, _NOT_NEGATIVE, free=True),  # batches made ahead
  'synthetic_examples': Key(1024, _POSITIVE),
  'synthetic_classes': Key(10, _POSITIVE),
}

_INIT = {
  'workdir': Key(''),  # of the run whose weights this one starts with
  'checkpoint': Key('final'),  # newest, best or a step
  'mean_image': Key(False),  # True: subtract that run's mean image here
  'skip': Key((), _PATTERNS),  # parameters that start anew, such as head
  'freeze': Key((), _PATTERNS),  # parameters that do not train, such as conv*
  # When they begin to train, with a new optimizer; both 0: never.
  'unfreeze_epochs': Key(0.0, _NOT_NEGATIVE),
  'unfreeze_steps': Key(0, _NOT_NEGATIVE),
}

_LOSS = {  # of training
  'label_smoothing': Key(0.0, _SHARE),  # share given to all classes alike
  'l1': Key(0.0, _NOT_NEGATIVE),  # penalty: times the sum of |w|, all kernels
  'l2': Key(0.0, _NOT_NEGATIVE),  # penalty: times the sum of w^2, all kernels
}

_OPTIMIZER = {
  'name': Key('sgd', ('sgd', 'adam', 'rmsprop', 'lars')),
  'learning_rate': Key(0.01, _POSITIVE),  # for base_batch_size, if scaled
  # Training uses learning_rate * (global_batch_size / base_batch_size) ** p:
  # none: p = 0, linear: 1 (Goyal et al. 2017), sqrt: 1/2 (Krizhevsky 2014).
  'rate_scaling': Key('none', ('none', 'linear', 'sqrt')),
  'base_batch_size': Key(256, _POSITIVE),
  'momentum': Key(0.9, _SHARE),  # not of adam
  'nesterov': Key(False),  # not of adam
  'b1': Key(0.9, _SHARE),  # of adam
  'b2': Key(0.999, _SHARE),  # of adam
  'rms_decay': Key(0.9, _SHARE),  # of rmsprop
  'epsilon': Key(1e-8, _POSITIVE),  # of adam and rmsprop
  'trust_coefficient': Key(0.001, _POSITIVE),  # of lars
  'weight_decay': Key(5e-4, _NOT_NEGATIVE),
  'decoupled_decay': Key(False),  # True: w -= learning_rate * weight_decay * w
  'decay': Key('all', ('all', 'kernels')),  # kernels: not biases and norms
  'bias_lr_multiplier': Key(1.0, _POSITIVE),  # of biases; Caffe's is 2
  # paper: the learning rate inside the velocity.
  'update_rule': Key('optax', ('optax', 'paper')),
}

_SCHEDULE = {
  'name': Key('plateau', ('constant', 'plateau', 'step', 'cosine', 'recorded')),
  'monitor': Key('eval/top1', MONITORS),
  'mode': Key('max', _MODES),
  'factor': Key(0.1, _FRACTION),  # of a drop
  'patience': Key(5, _POSITIVE),  # evaluations
  'threshold': Key(
    1e-4, _NOT_NEGATIVE
  ),  # smallest change that counts as better
  'cooldown': Key(0, _NOT_NEGATIVE),  # evaluations
  'min_learning_rate': Key(0.0, _NOT_NEGATIVE),  # absolute: never scaled
  'drop_epochs': Key(()),  # of `step`
  'drop_steps': Key(()),
  # Of `recorded`: (epoch, pattern, factor), in the order of the epochs. From
  # then on the parameters whose names match, such as conv1/* or */kernel, have
  # the learning rate times the factor; the last entry that matches counts.
  'lr_multipliers': Key(()),
  'warmup_epochs': Key(0.0, _NOT_NEGATIVE),
  'warmup_steps': Key(0, _NOT_NEGATIVE),
}

_EARLY_STOPPING = {
  'enabled': Key(False),
  'monitor': Key('eval/top1', MONITORS),
  'mode': Key('max', _MODES),
  'threshold': Key(0.0, _NOT_NEGATIVE),
  'patience': Key(10, _POSITIVE),  # evaluations
  'restore_best': Key(True),  # the run ends with the best state
}

_CHECKPOINT = {
  'keep': Key(2, _POSITIVE, free=True),  # newest ones; the best is kept as well
  'monitor': Key('eval/top1', MONITORS),
  'mode': Key('max', _MODES),
}

_GUARDS = {
  # Steps after which to warn of a loss at ln(classes); 0: never.
  'flat_loss_steps': Key(500, _NOT_NEGATIVE, free=True),
}


_MODEL = {
  'num_classes': Key(0, _NOT_NEGATIVE),  # 0: as many as the data set has
  # Of the computation; parameters are float32.
  'dtype': Key('float32', ('float32', 'bfloat16')),
  # Meanings and checks of all others are in `models.spec`.
  **{name: Key(default) for name, default in spec.defaults().items()},
}


KEYS = _RUN | {
  f'{section}.{name}': key
  for section, keys in {
    'data': _DATA,
    'model': _MODEL,
    'init': _INIT,
    'loss': _LOSS,
    'optimizer': _OPTIMIZER,
    'schedule': _SCHEDULE,
    'early_stopping': _EARLY_STOPPING,
    'checkpoint': _CHECKPOINT,
    'guards': _GUARDS,
  }.items()
  for name, key in keys.items()
}


def make_config() -> ml_collections.ConfigDict:
  """Returns the defaults: one tower with LRN, trained as in the paper."""
  values = {}
  for name, key in KEYS.items():
    *section, leaf = name.split('.')
    home = values.setdefault(section[0], {}) if section else values
    home[leaf] = key.default
  return ml_collections.ConfigDict(values)


def flatten(config, prefix: str = '') -> dict:
  """Returns {'data.path': value, ...} of a nested config or dict."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def to_json(config: ml_collections.ConfigDict) -> str:
  """Returns the config as JSON, keys sorted; see `from_dict`."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_dict(values: dict) -> ml_collections.ConfigDict:
  """Returns the config that was saved as JSON; missing keys get defaults."""
  config = make_config()
  config.update(_tuples(values))
  return config


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Reads the config that a run wrote into its folder.

  Raises:
    UserError: if there is none, or not one of this program.
  """
  try:
    return from_dict(
      json.loads((pathlib.Path(workdir) / CONFIG_FILE).read_text())
    )
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(f'{workdir} is not the folder of a run: {error}') from error


def write_config(config: ml_collections.ConfigDict, workdir) -> None:
  """Writes config.json into the run's folder, for people to read."""
  with files.replaced_file(pathlib.Path(workdir, CONFIG_FILE)) as temporary:
    temporary.write_text(to_json(config))


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value


def training_changes(
  stored: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> list[str]:
  """Returns `key: stored -> new` of keys that would change the training."""
  free = {name for name, key in KEYS.items() if key.free}
  if config.schedule.name == 'cosine':  # its shape depends on the end
    free -= {'num_epochs', 'num_steps'}
  return [
    f'config.{key}: {before!r} -> {after!r}'
    for key, (before, after) in files.differences(
      flatten(stored), flatten(config)
    ).items()
    if key not in free
    # Until now no image was unreadable, or the run would have stopped.
    and (key, after) != ('data.unreadable', 'skip')
    # The weights are in the checkpoint, wherever the other run is now.
    and not (key == 'init.workdir' and before and after)
  ]


def recipe_name(recipe: str) -> str:
  """Returns the name of a recipe: `compare_flat_alexnet` of FILE:ARGUMENT."""
  path, _, argument = recipe.partition(':')
  argument = argument.strip('/').replace('/', '_')
  return '_'.join([pathlib.Path(path).stem, *filter(None, [argument])])


@dataclasses.dataclass(frozen=True)
class Durations:
  """Durations of a run, in steps; 0 is never. An epoch may end in a step."""

  steps_per_epoch: float
  num_steps: int
  eval_every: fractions.Fraction
  save_every: fractions.Fraction
  unfreeze_step: int  # 0: frozen parameters stay so
  warmup_steps: int
  drop_steps: tuple[int, ...]
  lr_multiplier_steps: tuple[int, ...]  # begins of schedule.lr_multipliers
  pca_lighting_steps: int  # with PCA lighting; 0: all


def resolve_durations(config, num_examples: int) -> Durations:
  """Resolves every duration of the config to steps.

  The fractions are exact, so that an epoch ends in the same step whether one
  counts one epoch or a hundred.

  Args:
    config: of the run.
    num_examples: of the training split.
  """
  per_epoch = fractions.Fraction(num_examples, config.global_batch_size)

  def exact(epochs):
    return fractions.Fraction(repr(float(epochs))) * per_epoch

  def steps(section, name):
    if section[f'{name}_steps']:
      return fractions.Fraction(section[f'{name}_steps'])
    epochs = exact(section[f'{name}_epochs'])
    return max(fractions.Fraction(1), epochs) if epochs else epochs

  schedule = config.schedule
  drops = schedule.drop_steps or [
    math.ceil(exact(epoch)) for epoch in schedule.drop_epochs
  ]
  return Durations(
    steps_per_epoch=float(per_epoch),
    num_steps=math.ceil(steps(config, 'num')),
    eval_every=steps(config, 'eval_every'),
    save_every=steps(config, 'save_every'),
    unfreeze_step=math.ceil(steps(config.init, 'unfreeze')),
    warmup_steps=round(steps(schedule, 'warmup')),
    drop_steps=tuple(drops),
    lr_multiplier_steps=tuple(
      math.ceil(exact(epoch)) for epoch, _, _ in schedule.lr_multipliers
    ),
    pca_lighting_steps=math.ceil(steps(config.data, 'pca_lighting')),
  )
