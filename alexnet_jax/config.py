"""Every config key with its default and meaning.

`recipes` reads a recipe with its overrides, and checks the values.
"""

import fractions
import json
import os
import pathlib

import ml_collections

from alexnet_jax.errors import UserError

CONFIG_FILE = 'config.json'  # in the folder of a run

# Keys that a resumed run may change: they leave the training as it is. The
# number of epochs is one of them unless the schedule depends on it.
FREE_KEYS = (
  'num_epochs',
  'num_steps',
  'log_every_steps',
  'save_every_epochs',
  'save_every_steps',
  'histogram_every_evals',
  'report',
  'parallel',
  'forms',
  'max_device_batch_size',
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
  config.global_batch_size = 128  # over all devices, however many there are
  # Examples that a device computes at a time; 0: all that it has of a batch.
  # Its part goes in the smallest number of equal pieces that are no larger, and
  # the gradients of all pieces make one update. Batch norm takes the statistics
  # of each piece, over all devices, and its running averages move with each:
  # with it the training depends on the number of pieces, but on nothing else
  # about the devices.
  config.max_device_batch_size = 0
  config.eval_every_epochs = 1.0
  config.eval_every_steps = 0
  config.save_every_epochs = 0.0  # besides the saves after each evaluation
  config.save_every_steps = 0
  config.log_every_steps = 50
  config.histogram_every_evals = 5  # of parameters and gradients; 0: never
  config.report = True  # tables and pictures at the end of a run
  config.parallel = 'pmap'  # or shard_map: the same numbers
  # Of the gradients on their way between devices; bfloat16 halves the bytes.
  config.reduction_dtype = 'float32'
  # Of the network's operations: auto, the best known for the device, or plain,
  # as one writes them first. They differ in nothing but roundings.
  config.forms = 'auto'
  config.ema_decay = 0.0  # of averaged weights for evaluation; 0: none

  config.data = _data_defaults()
  config.model = _model_defaults()

  config.init = _init_defaults()

  config.loss = loss = ml_collections.ConfigDict()  # of training
  loss.label_smoothing = 0.0  # share given to all classes alike
  loss.l1 = 0.0  # penalty: times the sum of |w| over all kernels
  loss.l2 = 0.0  # penalty: times the sum of w^2 over all kernels

  config.optimizer = _optimizer_defaults()

  config.schedule = schedule = ml_collections.ConfigDict()
  schedule.name = 'plateau'  # constant, plateau, step, cosine or recorded
  schedule.monitor = 'eval/top1'
  schedule.mode = 'max'
  schedule.factor = 0.1  # of a drop
  schedule.patience = 5  # evaluations
  schedule.threshold = 1e-4  # what counts as better
  schedule.cooldown = 0  # evaluations
  schedule.min_learning_rate = 0.0  # as it is: rate_scaling leaves it alone
  schedule.drop_epochs = ()  # of `step`
  schedule.drop_steps = ()
  # Of `recorded`: (epoch, pattern, factor), in the order of the epochs. From
  # then on the parameters whose names match, such as conv1/* or */kernel, have
  # the rate times the factor; the last entry that matches counts.
  schedule.rates = ()
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


def _init_defaults():
  init = ml_collections.ConfigDict()
  init.workdir = ''  # of the run whose weights this one starts with
  init.checkpoint = 'final'  # newest, best or a step
  init.mean_image = False  # whether that run's mean image is subtracted here
  init.skip = ()  # patterns of parameters that start anew, such as head
  init.freeze = ()  # patterns of parameters that do not train, such as conv*
  # When they train, too, with an optimizer that starts anew; both 0: never.
  init.unfreeze_epochs = 0.0
  init.unfreeze_steps = 0
  return init


def _optimizer_defaults():
  optimizer = ml_collections.ConfigDict()
  optimizer.name = 'sgd'  # adam, rmsprop or lars
  optimizer.learning_rate = 0.01  # of batches of base_batch_size, if scaled
  # Training uses learning_rate * (global_batch_size / base_batch_size) ** p:
  # none: p = 0, linear: 1 (Goyal et al. 2017), sqrt: 1/2 (Krizhevsky 2014).
  optimizer.rate_scaling = 'none'
  optimizer.base_batch_size = 256
  optimizer.momentum = 0.9  # not of adam
  optimizer.nesterov = False  # not of adam
  optimizer.b1 = 0.9  # of adam
  optimizer.b2 = 0.999  # of adam
  optimizer.rms_decay = 0.9  # of rmsprop
  optimizer.epsilon = 1e-8  # of adam and rmsprop
  optimizer.trust_coefficient = 0.001  # of lars
  optimizer.weight_decay = 5e-4
  optimizer.decoupled_decay = False  # True: w -= rate * weight_decay * w
  optimizer.decay = 'all'  # or kernels: biases and norms do not decay
  optimizer.bias_rate = 1.0  # factor on the rate of biases; Caffe's is 2
  optimizer.update_rule = 'optax'  # paper: the rate inside the velocity
  return optimizer


def _data_defaults():
  data = ml_collections.ConfigDict()
  data.source = 'digits'  # folder, tfds, tar, parquet, raw or synthetic
  data.path = ''  # the data's folder; the data_dir of TFDS ('': its default)
  data.tfds_name = 'imagenet2012'
  data.tfds_train_split = 'train'
  data.tfds_eval_split = 'validation'
  data.val_fraction = 0.2  # held out of each class where there is no val/
  data.split_seed = 0
  data.folds = 0  # cross-validation: number of folds; 0: the data's own split
  data.fold = 0  # the one held out, from 0
  data.resize_size = 256  # the short side; its centre square is kept
  data.crop_size = 224
  data.crop = 'random'  # centre, or random_resized; evaluation: the centre
  data.crop_area = (0.08, 1.0)  # of random_resized: share of the image
  data.crop_ratio = (3 / 4, 4 / 3)  # of random_resized: width / height
  data.random_flip = True
  data.brightness = 0.0  # largest random shift, as a share of white
  # Standard deviation of the draws along the principal components of the
  # colours; 0.1 in the paper. Each goes as far as the variance along it
  # (eigenvalue, of pixels as shares of white) or the deviation.
  data.colour_shift = 0.0
  data.colour_unit = 'eigenvalue'  # or deviation, as in the source release
  # While colours are shifted, pixels after the mean are divided by 1 +
  # colour_shift, as in the source release.
  data.colour_shrink = False
  data.colour_shift_epochs = 0.0  # then no more; both 0: to the end
  data.colour_shift_steps = 0
  data.scaled_decoding = True  # of training JPEGs at least twice too large
  data.mean = 'channel'  # subtracted: per channel, the mean image, or none
  data.mean_rgb = ()  # of `channel`: three levels instead of the data's own
  data.std = 1.0  # one divisor for all pixels after the mean
  data.std_rgb = ()  # three divisors instead, one for each channel
  data.unreadable = 'stop'  # or skip: the next example takes the place
  data.num_threads = 0  # decoding threads; 0: one per core
  data.prefetch = 2  # batches made ahead
  data.synthetic_examples = 1024
  data.synthetic_classes = 10
  return data


def _model_defaults():
  model = ml_collections.ConfigDict()
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
  # Of each convolution, what follows it: names of relu, norm, spatial, pool
  # joined by -, such as norm-pool-relu; '' or (): as the other keys say.
  model.orders = ()
  model.norm_hidden = ()  # hidden dense layers with batch norm
  model.batch_norm_momentum = 0.9  # of the statistics that evaluation uses
  model.batch_norm_epsilon = 1e-5
  model.lrn_size = 5
  model.lrn_k = 2.0
  model.lrn_alpha = 1e-4
  model.lrn_beta = 0.75
  model.lrn_convention = 'paper'  # caffe divides alpha by lrn_size
  model.lrn_groups = 1  # of channels, normalised apart; 2: the towers
  model.spatial_size = 5  # of the normalisation `spatial` of `orders`
  model.spatial_k = 1.0
  model.spatial_alpha = 0.001
  model.spatial_beta = 0.75
  model.hidden = (4096, 4096)
  model.dropout = 0.5
  model.dropout_place = 'after'  # or before each hidden dense layer
  model.dropout_scaling = 'training'  # or evaluation, as in the paper
  model.width_multiplier = 1.0
  model.kernel_init = 'paper'
  model.positive_bias = 1.0  # where the paper starts biases at 1
  model.bias_layers = (2, 4, 5)
  model.dtype = 'float32'  # of the computation; parameters are float32
  return model


def flatten(config, prefix: str = '') -> dict:
  """{'data.path': value, ...} of a nested config or dict."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as JSON, keys sorted; see `from_dict`."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_dict(values: dict) -> ml_collections.ConfigDict:
  """The config that was saved as JSON; keys it lacks have their defaults."""
  config = make_config()
  config.update(_tuples(values))
  return config


def of_run(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """The config that a run wrote into its folder.

  Raises:
    UserError: if there is none, or not one of this program.
  """
  try:
    return from_dict(
      json.loads((pathlib.Path(workdir) / CONFIG_FILE).read_text())
    )
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(f'{workdir} is not the folder of a run: {error}') from error


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
    if key not in free
    and before[key] != after[key]
    # Until now no image was unreadable, or the run would have stopped.
    and not (key == 'data.unreadable' and after[key] == 'skip')
  ]


def steps_of(
  config: ml_collections.ConfigDict,
  name: str,
  steps_per_epoch: fractions.Fraction,
) -> fractions.Fraction:
  """Resolves the duration `name_epochs` or `name_steps` to steps (0: none).

  The fraction is exact, so that an epoch ends in the same step whether one
  counts one epoch or a hundred.
  """
  if config[f'{name}_steps']:
    return fractions.Fraction(config[f'{name}_steps'])
  epochs = fractions.Fraction(repr(float(config[f'{name}_epochs'])))
  return (
    max(fractions.Fraction(1), epochs * steps_per_epoch)
    if epochs
    else (fractions.Fraction(0))
  )
