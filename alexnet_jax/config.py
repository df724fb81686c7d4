"""Every config key: default, meaning, allowed values, and when it counts.

`validation.load_config` reads a recipe with its overrides and checks it.
"""

from collections.abc import Callable
import dataclasses
import fnmatch
import itertools
import pathlib

import ml_collections

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.models import spec
from alexnet_jax.models.spec import is_number

CONFIG_FILE = 'config.json'  # in the folder of a run


@dataclasses.dataclass(frozen=True)
class Rule:
  """A condition on values of the right type; `text` ends `X is VALUE; it`."""

  text: str
  holds: Callable[[object], bool]


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of the config."""

  default: object  # without a recipe; all values have its type
  allowed: tuple | Rule | None = None  # None: checked elsewhere
  free: bool = False  # whether a resumed run may change it
  # Values of other keys with which it has an effect, such as
  # `schedule.name=plateau|step and data.path`; '': always.
  when: str = ''


def fits(value, choices: tuple) -> bool:
  """Returns True if a value is one of the choices; `optax.*` is many."""
  return any(fnmatch.fnmatchcase(str(value), str(each)) for each in choices)


def _numbers_rule(text, holds):
  return Rule(text, lambda v: all(map(is_number, v)) and holds(v))


def _span(least, most):
  return _numbers_rule(
    f'takes (smallest, largest), both from {least} to {most}',
    lambda v: len(v) == 2 and least <= v[0] <= v[1] <= most,
  )


_POSITIVE = Rule('must be greater than 0', lambda value: value > 0)
_NOT_NEGATIVE = Rule('must not be negative', lambda value: value >= 0)
_SHARE = Rule('must be at least 0 and below 1', lambda value: 0 <= value < 1)
_FRACTION = Rule('must be above 0 and below 1', lambda value: 0 < value < 1)
# JAX draws from 32 bits of a seed, numpy from all.
_SEED = Rule('must lie between 0 and 2**32 - 1', lambda v: 0 <= v < 2**32)
_ASCENDING = _numbers_rule(
  'takes numbers above 0, each larger than the one before it',
  lambda values: all(a < b for a, b in itertools.pairwise((0, *values))),
)
_LEVELS = _numbers_rule(
  'takes three levels of 255 (of gray images one), or ()',
  lambda v: len(v) in (0, 1, 3) and all(0 <= level <= 255 for level in v),
)
_DIVISORS = _numbers_rule(
  'takes three numbers above 0 (of gray images one), or ()',
  lambda v: len(v) in (0, 1, 3) and all(divisor > 0 for divisor in v),
)


def _are_multipliers(entries):
  epochs = [0]
  for entry in entries:
    match entry:
      case [epoch, str(), factor] if is_number(epoch) and is_number(factor):
        epochs.append(epoch if factor >= 0 else -1)
      case _:
        return False
  return epochs == sorted(epochs)


_MULTIPLIERS = Rule(
  'takes (epoch, pattern, factor of the learning rate), by ascending epochs',
  _are_multipliers,
)


def _is_plain(value):
  """Returns True for what JSON keeps."""
  if isinstance(value, (tuple, list)):
    return all(map(_is_plain, value))
  return isinstance(value, (bool, str, type(None))) or is_number(value)


def _are_arguments(entries):
  pairs = [e for e in entries if isinstance(e, (tuple, list)) and len(e) == 2]
  names = {name for name, value in pairs if isinstance(name, str)}
  return len(names) == len(entries) and _is_plain(pairs)


_ARGUMENTS = Rule(
  "takes names and values: {'b1': 0.95}, in a recipe (('b1', 0.95),)",
  _are_arguments,
)
_CLASS_WEIGHTS = Rule(
  "takes a number from 1e-6 to 1e6 for each class, or 'balanced'",
  lambda values: (
    tuple(values) == ('balanced',)
    or all(is_number(v) and 1e-6 <= v <= 1e6 for v in values)
  ),
)
# An image of the largest size has 0.8 GB.
_PIXELS = Rule('must lie between 1 and 2**14', lambda v: 1 <= v <= 2**14)
_THREADS = Rule('must lie between 0 and 1024', lambda v: 0 <= v <= 1024)
_COUNT = Rule('must lie between 1 and 2**24', lambda v: 1 <= v <= 2**24)
_FOLDS = Rule('must be 0 or at least 2', lambda v: v == 0 or v > 1)
_PATTERNS = Rule(
  "takes patterns: ('conv*', 'dense1/kernel')",
  lambda values: all(isinstance(v, str) and v for v in values),
)
MONITORS = ('eval/loss', 'eval/top1', 'eval/top5')
MONITORS += ('eval/macro_precision', 'eval/macro_recall', 'eval/macro_f1')
MONITORS += ('eval/weighted_precision', 'eval/weighted_recall')
MONITORS += ('eval/weighted_f1',)

# Durations carry their unit: of `X_epochs` and `X_steps` one is 0.
DURATIONS = ('num', 'eval_every', 'save_every')
DURATIONS += ('data.pca_lighting', 'schedule.warmup')

_RUN = {
  'seed': Key(0, _SEED),  # order, crops, initialization, dropout
  'num_epochs': Key(90.0, _NOT_NEGATIVE, free=True),
  'num_steps': Key(0, _NOT_NEGATIVE, free=True),
  'global_batch_size': Key(128, _POSITIVE),  # over all devices of all processes
  # Examples that a device computes at a time, at most; 0: its whole part of a
  # batch. The part is cut into the fewest equal microbatches, whose gradients
  # make one update. Batch norm takes the statistics of each, over all devices.
  'microbatch_size': Key(0, _NOT_NEGATIVE, free=True),
  'eval_every_epochs': Key(1.0, _NOT_NEGATIVE),
  'eval_every_steps': Key(0, _NOT_NEGATIVE),
  # Saves in addition to the one after each evaluation.
  'save_every_epochs': Key(0.0, _NOT_NEGATIVE, free=True),
  'save_every_steps': Key(0, _NOT_NEGATIVE, free=True),
  # And when so many minutes have passed since the last save; 0: never.
  'save_every_minutes': Key(0.0, _NOT_NEGATIVE, free=True),
  'log_every_steps': Key(50, _POSITIVE, free=True),
  # Who is told the history, too; see `training.writers`.
  'loggers': Key('', ('', 'wandb', 'mlflow', 'wandb,mlflow'), free=True),
  'report': Key(True, free=True),  # tables and pictures at the end of a run
  'parallel': Key('pmap', ('pmap', 'shard_map'), free=True),  # same numbers
  # dtype of the gradient all-reduce; bfloat16 halves the traffic.
  'grad_allreduce_dtype': Key('float32', ('float32', 'bfloat16')),
  # Of the network's operations: auto, the fastest known for the device, or as
  # one writes them first. They agree up to rounding.
  'implementation': Key('auto', ('auto', 'reference'), free=True),
  'ema_decay': Key(0.0, _SHARE),  # of averaged weights for evaluation; 0: none
}

_SOURCES = ('digits', 'folder', 'tfds', 'imagenet', 'tar', 'parquet', 'raw')
_SOURCES += ('synthetic',)
_IMAGES = 'data.source=folder|tfds|imagenet|tar|parquet'  # encoded
_DIVIDED = 'data.source=digits|folder|tar|parquet'  # without a split
_TFDS = 'data.source=tfds'
_SYNTHETIC = 'data.source=synthetic'
_RESIZED = 'data.crop=random_resized'
_LIGHTING = 'data.pca_lighting'
_UNITS = ('eigenvalue', 'deviation')

_DATA = {
  'source': Key('digits', _SOURCES),
  # The data's folder; of tfds the data_dir ('': its default).
  'path': Key('', free=True, when=_IMAGES + '|raw'),
  'tfds_name': Key('imagenet2012', when=_TFDS),
  'tfds_train_split': Key('train', when=_TFDS),
  'tfds_eval_split': Key('validation', when=f'{_TFDS} and data.folds=0'),
  # Held out of each class where the data has no validation split.
  'val_fraction': Key(0.2, _FRACTION, when=f'{_DIVIDED} and data.folds=0'),
  'split_seed': Key(0, _SEED, when=f'{_DIVIDED} or data.folds'),
  'folds': Key(0, _FOLDS),  # cross-validation; 0: the data's own split
  'fold': Key(0, _NOT_NEGATIVE, when='data.folds'),  # held out, from 0
  'resize_size': Key(256, _PIXELS),  # short side; its center square is kept
  'crop_size': Key(224, _PIXELS),
  # 1: gray. Images are resized and cropped in color, and become their luma of
  # ITU-R 601-2 then, as Pillow's convert('L') rounds it.
  'channels': Key(3, (3, 1)),
  # Of training; evaluation always takes the center.
  'crop': Key('random', ('random', 'center', 'random_resized')),
  # Share of the image; width / height.
  'crop_area': Key((0.08, 1.0), _span(0.0001, 1), when=_RESIZED),
  'crop_ratio': Key((3 / 4, 4 / 3), _span(0.01, 100), when=_RESIZED),
  'random_flip': Key(True),
  'brightness': Key(0.0, _SHARE),  # largest random shift, as a share of white
  # Deviation of draws along the principal components of the colors; 0.1 in the
  # paper. Each is scaled by the variance along it (eigenvalue, of pixels as
  # shares of white) or by the deviation, as in the source release.
  'pca_lighting': Key(0.0, _NOT_NEGATIVE),
  'pca_lighting_unit': Key('eigenvalue', _UNITS, when=_LIGHTING),
  # Divides pixels after the mean by 1 + pca_lighting, as the source release.
  'pca_lighting_shrink': Key(False, when=_LIGHTING),
  # After that it is off; both 0: never.
  'pca_lighting_epochs': Key(0.0, _NOT_NEGATIVE, when=_LIGHTING),
  'pca_lighting_steps': Key(0, _NOT_NEGATIVE, when=_LIGHTING),
  # Of training JPEGs at least twice too large.
  'scaled_decoding': Key(True, when=_IMAGES),
  # Subtracted: the mean per channel, the mean image, or nothing.
  'mean': Key('channel', ('channel', 'image', 'none')),
  # Of `channel`: a level for each instead of the data's own.
  'mean_rgb': Key((), _LEVELS, when='data.mean=channel'),
  'std': Key(1.0, _POSITIVE),  # one divisor for all pixels after the mean
  'std_rgb': Key((), _DIVISORS),  # one for each channel instead
  # skip: the next example takes the place of one that cannot be read.
  'unreadable': Key('stop', ('stop', 'skip')),
  'num_threads': Key(0, _THREADS, free=True),  # 0: one per core
  'prefetch': Key(2, _NOT_NEGATIVE, free=True),  # batches made ahead
  'synthetic_examples': Key(1024, _COUNT, when=_SYNTHETIC),
  'synthetic_classes': Key(10, _COUNT, when=_SYNTHETIC),
}

_INIT = {
  'workdir': Key(''),  # of the run whose weights this one starts with
  'checkpoint': Key('final', when='init.workdir'),  # newest, best or a step
  # Parameters that start anew, such as head.
  'skip': Key((), _PATTERNS, when='init.workdir'),
  'freeze': Key((), _PATTERNS),  # parameters that do not train, such as conv*
}

_LOSS = {  # of training
  'label_smoothing': Key(0.0, _SHARE),  # share given to all classes alike
  # One for each class, by their order; ('balanced',): examples / (classes *
  # examples of the class), as scikit-learn; of tfds that reads all records.
  # The mean over a batch is sum(weight * loss) / sum(weight), as in PyTorch:
  # train/objective; train/loss and evaluation are without weights.
  'class_weights': Key((), _CLASS_WEIGHTS),
}

_SGD = 'optimizer.name=sgd'
_DECAYED = f'optimizer.weight_decay and {_SGD}'

_OPTIMIZER = {
  # optax.NAME, optax.contrib.NAME: with these arguments of its own, such as
  # {'weight_decay': 0.1, 'mask': 'kernels'} (no biases and norms).
  'name': Key('sgd', ('sgd', 'optax.*')),
  'arguments': Key((), _ARGUMENTS, when='optimizer.name=optax.*'),
  'learning_rate': Key(0.01, _POSITIVE),  # before warm-up and drops
  # Limits of each number of a batch's gradient, then of the norm of all,
  # without decay and frozen parameters; 0: none.
  'clip_value': Key(0.0, _NOT_NEGATIVE),
  'clip_norm': Key(0.0, _NOT_NEGATIVE),
  'momentum': Key(0.9, _SHARE, when=_SGD),
  'nesterov': Key(False, when=_SGD),
  'weight_decay': Key(5e-4, _NOT_NEGATIVE, when=_SGD),
  # kernels: not biases and norms.
  'decay': Key('all', ('all', 'kernels'), when=_DECAYED),
  'bias_lr_multiplier': Key(1.0, _POSITIVE),  # of biases; Caffe's is 2
  # paper: the learning rate inside the velocity, as in Keras.
  'update_rule': Key('optax', ('optax', 'paper'), when=_SGD),
}

_PLATEAU = 'schedule.name=plateau'
_CYCLE = 'schedule.name=one_cycle'
_LOWERED = 'schedule.name=plateau|cosine|linear|polynomial'
_TO_THE_END = ('cosine', 'linear', 'polynomial', 'one_cycle')
_SCHEDULES = ('constant', 'plateau', 'step', *_TO_THE_END, 'recorded')

_SCHEDULE = {
  'name': Key('plateau', _SCHEDULES),
  # What has to improve: the loss falls, all others rise; see `mode_of`.
  'monitor': Key('eval/top1', MONITORS, when=_PLATEAU),
  'factor': Key(0.1, _FRACTION, when=_PLATEAU + '|step'),  # of a drop
  'patience': Key(5, _POSITIVE, when=_PLATEAU),  # evaluations after warm-up
  'threshold': Key(1e-4, _NOT_NEGATIVE, when=_PLATEAU),  # that counts as better
  'cooldown': Key(0, _NOT_NEGATIVE, when=_PLATEAU),  # evaluations
  'min_learning_rate': Key(0.0, _NOT_NEGATIVE, when=_LOWERED),  # never scaled
  'power': Key(1.0, _POSITIVE, when='schedule.name=polynomial'),
  # As OneCycleLR: from learning_rate / start_divisor up for rise_fraction of
  # the steps, then down to the final_divisor-th part of where it began.
  'start_divisor': Key(25.0, _POSITIVE, when=_CYCLE),
  'final_divisor': Key(1e4, _POSITIVE, when=_CYCLE),
  'rise_fraction': Key(0.3, _FRACTION, when=_CYCLE),
  'drop_epochs': Key((), _ASCENDING, when='schedule.name=step'),
  'drop_steps': Key((), _ASCENDING, when='schedule.name=step'),
  # (epoch, pattern, factor): from then on parameters whose names match, such as
  # conv1/* or */kernel, have the rate times the factor; the last match counts.
  'lr_multipliers': Key((), _MULTIPLIERS, when='schedule.name=recorded'),
  'warmup_epochs': Key(0.0, _NOT_NEGATIVE),
  'warmup_steps': Key(0, _NOT_NEGATIVE),
}

_STOPPING = 'early_stopping.enabled'
_EARLY_STOPPING = {
  'enabled': Key(False),
  'monitor': Key('eval/top1', MONITORS, when=_STOPPING),
  'threshold': Key(0.0, _NOT_NEGATIVE, when=_STOPPING),
  'patience': Key(10, _POSITIVE, when=_STOPPING),  # evaluations
  'restore_best': Key(True, when=_STOPPING),  # at the end of the run
}

_CHECKPOINT = {
  'keep': Key(2, _POSITIVE, free=True),  # newest ones; the best is kept as well
  # log: steps 0 (before the first update), 1, 2, 4, 8, ... are saved and kept.
  'keep_at': Key('', ('', 'log'), free=True),
  'monitor': Key('eval/top1', MONITORS),
}

# Steps after which, or at the end, to warn of a loss at ln(classes); 0: never.
_GUARDS = {'flat_loss_steps': Key(500, _NOT_NEGATIVE, free=True)}

_LRN = 'model.norm=lrn and model.norm_layers'
_BATCH_NORM = 'model.norm=batch and model.norm_layers'
_DROPOUT = 'model.dropout and model.hidden'
_MODEL_WHEN = {
  'norm_layers': 'model.norm=lrn|batch',
  'norm_before_relu': f'{_LRN} or {_BATCH_NORM}',
  'pool_size': 'model.pool_layers',
  'pool_stride': 'model.pool_layers',
  'batch_norm_momentum': _BATCH_NORM,
  'batch_norm_epsilon': _BATCH_NORM,
  'dropout': 'model.hidden',
  'dropout_position': _DROPOUT,
  'dropout_scaling': _DROPOUT,
  'bias_init': 'model.bias_layers or model.hidden',
}

_MODEL = {
  'num_classes': Key(0, _NOT_NEGATIVE),  # 0: as many as the data set has
  # Of the computation; parameters are float32.
  'dtype': Key('float32', ('float32', 'bfloat16')),
}
for _name, _default in spec.defaults().items():  # `models.spec` checks them
  _when = _LRN if _name.startswith('lrn_') else _MODEL_WHEN.get(_name, '')
  _MODEL[_name] = Key(_default, when=_when)

_SECTIONS = {
  'data': _DATA,
  'model': _MODEL,
  'init': _INIT,
  'loss': _LOSS,
  'optimizer': _OPTIMIZER,
  'schedule': _SCHEDULE,
  'early_stopping': _EARLY_STOPPING,
  'checkpoint': _CHECKPOINT,
  'guards': _GUARDS,
}
KEYS = _RUN | {
  f'{section}.{name}': key
  for section, keys in _SECTIONS.items()
  for name, key in keys.items()
}


def mode_of(monitor: str) -> str:
  """Returns `min` if smaller values of a measure are better, else `max`."""
  return 'min' if monitor == 'eval/loss' else 'max'


def free_keys(*, lengths: bool) -> set[str]:
  """Returns the keys that do not change what is trained, only how or where.

  With `lengths` the number of epochs or steps is among them.
  """
  free = {name for name, key in KEYS.items() if key.free}
  return free if lengths else free - {'num_epochs', 'num_steps'}


def make_config() -> ml_collections.ConfigDict:
  """Returns the defaults: one tower with LRN, trained as in the paper."""
  sections = {'': _RUN} | _SECTIONS
  defaults = {
    section: {name: key.default for name, key in keys.items()}
    for section, keys in sections.items()
  }
  return ml_collections.ConfigDict(defaults.pop('') | defaults)


def flatten(config, prefix: str = '') -> dict:
  """Returns {'data.path': value, ...} of a nested config or dict."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def from_dict(values: dict) -> ml_collections.ConfigDict:
  """Returns the config of values out of JSON; missing keys get defaults.

  Raises UserError if it is something else; see also `validation.check_values`.
  """
  config = make_config()
  try:
    config.update(_tuples(values))
  except (TypeError, ValueError, KeyError, AttributeError) as error:
    raise UserError(f'it has no config of this program: {error}') from error
  return config


def write_config(config: ml_collections.ConfigDict, workdir) -> None:
  """Writes config.json into the run's folder."""
  files.write_json(pathlib.Path(workdir, CONFIG_FILE), config.to_dict())


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(_tuples(item) for item in value)
  return value


def training_changes(
  stored: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> list[str]:
  """Returns `key: stored -> new` of keys that would change the training."""
  # On its length the shape of a schedule to the end depends.
  free = free_keys(lengths=config.schedule.name not in _TO_THE_END)
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
