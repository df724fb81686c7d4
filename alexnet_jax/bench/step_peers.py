"""The steps that `bench step` runs in processes: ours, PyTorch's and Keras'.

`_our_steps` and its like build network, optimizer and a batch on the device:

    (kind, config, start, platform of ours) -> (run, {parameters: count, ...})

`run(part, number)` makes that many steps, train or evaluate, and returns the
mean loss in the last one, before its update. `start` is (params, images,
labels): params None or as flax has them, images float32 [batch, height, width,
3].
"""

from collections.abc import Iterator
import copy
import functools
import math
import time

import numpy as np

from alexnet_jax.config import KEYS
from alexnet_jax.errors import UserError
from alexnet_jax.models import spec

_CHECKED_STEPS = 3
_LEAST_STEPS = 2  # in a measurement
_MEAN = 120.0  # of the pixels
# What the others have no counterpart of, but for the defaults: in the network,
# and of updates all but SGD with momentum at a constant rate.
_ONLY_OURS = {
  'model': 'norm block_order lrn_groups dropout_scaling',
  'optimizer': 'name clip_value clip_norm decay bias_lr_multiplier',
  'loss': 'class_weights label_smoothing',
}


def check_config(config: dict) -> None:
  """Refuses a network, loss or optimizer that the others lack."""
  for section, names in _ONLY_OURS.items():
    for name in names.split():
      key, value = f'{section}.{name}', config[section][name]
      plain = KEYS[key].default
      if value != plain and (key, value) != ('model.norm', 'none'):
        raise UserError(
          f'--against: config.{key} is {value!r}, which is not written for the'
          f' others: compare with --config.{key}={plain}, or without --against'
        )


class Handler:
  """Answers requests for one candidate; see `harness`."""

  def __init__(self, candidate: str):
    """Takes the name of a candidate, such as torch eager."""
    library, _, kind = candidate.partition(' ')
    make = {'ours': _our_steps, 'torch': _torch_steps, 'keras': _keras_steps}
    self._make = functools.partial(make[library], kind)
    self._counts = {}

  def check(self, config: dict, start: tuple | None, platform: str) -> dict:
    """Makes a few updates; returns {losses, start: of ours, facts}."""
    config = copy.deepcopy(config)
    config['model'] |= {'dropout': 0.0, 'kernel_init': 'he'}
    config['data']['std'] = 60.0  # that of the pixels, more or less
    # Larger ones overshoot, and roundings grow.
    config['optimizer']['learning_rate'] = 2e-4
    run, facts = self._make(config, start, platform)
    return {'losses': [run('train', 1) for _ in range(_CHECKED_STEPS)], **facts}

  def build(self, config: dict, platform: str) -> dict:
    """Makes the network, and compiles nothing; returns what describes it."""
    rng, data = np.random.default_rng(0), config['data']
    size = data['crop_size']
    shape = (config['global_batch_size'], size, size, data['channels'])
    classes = config['model']['num_classes']
    labels = rng.integers(0, classes, shape[:1], np.int32)
    start = None, rng.standard_normal(shape, np.float32), labels
    self._run, facts = self._make(config, start, platform)
    self._images = len(labels)
    return facts

  def measure(self, part: str, least_seconds: float) -> float:
    """Returns images per second in 2 or more steps, after another one.

    `part` is train or evaluate; its first call also compiles, before.
    """
    self._time(part, 1)  # caches and cores are the last candidate's still
    if part not in self._counts:
      step = self._time(part, _LEAST_STEPS) / _LEAST_STEPS
      self._counts[part] = max(_LEAST_STEPS, math.ceil(least_seconds / step))
    count = self._counts[part]
    return self._images * count / self._time(part, count)

  def _time(self, part, number):
    start = time.perf_counter()
    loss = self._run(part, number)
    seconds = time.perf_counter() - start
    if not math.isfinite(loss):
      raise ArithmeticError(f'its loss is {loss}')
    return seconds


def _our_steps(_, config, start, platform):
  """Runs ours on uint8 noise, without `start` on little: {start: that, ...}."""
  del platform
  import jax

  from alexnet_jax import config as config_lib
  from alexnet_jax.training import build, parallel

  config, mesh = config_lib.from_dict(config), parallel.make_mesh()
  classes, device = config.model.num_classes, jax.devices()[0]
  if start is None:
    config.microbatch_size = 0
    most = max(1, config.global_batch_size // mesh.size)
    config.global_batch_size = mesh.size * min(8, most)
  config.loss.class_weights = ()  # of data, and here is none
  count = config.global_batch_size
  parallel.check_batch_size(count, mesh.size)
  mean = np.full(build.mean_shape(config), _MEAN, np.float32)
  steps = build.make_steps(config, mesh, mean)
  state = build.make_state(config, build.make_model(config, classes))
  state = parallel.replicate(state, mesh)
  key = parallel.replicate(build.dropout_key(config), mesh)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (count, *build.image_shape(config)), np.uint8)
  label = rng.integers(0, classes, count, np.int32)
  batch = {'image': image, 'label': label}
  flip = rng.random(count) < (0.5 if config.data.random_flip else 0)
  flips = {'flip': flip} if config.data.random_flip else {}
  more = {'train': flips, 'evaluate': {'mask': np.ones(count, bool)}}
  batches = {
    part: parallel.batch_to_devices(batch | own, mesh, config.parallel)
    for part, own in more.items()
  }

  def run(part, number):
    nonlocal state
    for _ in range(number):
      if part == 'train':
        state, sums = steps.train(state, batches[part], key)
      else:
        sums = steps.evaluate(state, batches[part])
    jax.block_until_ready(sums)  # on all devices
    return float(sums['loss']) / float(sums['count'])

  facts = {
    **build.network_costs(config, classes),
    'platform': device.platform,
    'device_kind': device.device_kind,
    'device_count': mesh.size,
  }
  if start is None:
    pixels = np.where(flip[:, None, None, None], image[:, :, ::-1], image)
    pixels = (pixels.astype(np.float32) - mean) / np.float32(config.data.std)
    facts['start'] = jax.device_get(state.params), pixels, label
  return run, facts


def _layers(config) -> Iterator[spec.Layer]:
  """Yields all layers of a network, in order."""
  model = config['model']
  network = spec.AlexNetSpec(**{k: model[k] for k in spec.defaults()})
  yield from network.layers(config['data']['crop_size'])
  yield spec.Layer('dense', 'head', (model['num_classes'],))


def _torch_steps(kind, config, start, platform):
  """Runs `eager`, `channels_last` or `compile`."""
  import torch
  from torch.nn import functional

  from alexnet_jax.data.loader import num_cores

  torch.set_num_threads(num_cores())
  device = torch.device('cuda' if platform == 'gpu' else 'cpu')
  if device.type == 'cuda':  # as JAX computes float32 there
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = True
  contiguous = kind != 'channels_last'
  layout = torch.contiguous_format if contiguous else torch.channels_last
  params, images, labels = start
  images = torch.from_numpy(images).permute(0, 3, 1, 2)
  images = images.to(device).contiguous(memory_format=layout)
  labels = torch.from_numpy(labels).to(device, torch.int64)
  network = _torch_network(config)
  with torch.no_grad():  # the first call makes the parameters
    network(torch.zeros(1, *images.shape[1:]))
  if params:
    _torch_load(network, params)
  network.to(device, memory_format=layout)
  rate = config['optimizer']['learning_rate']
  names = ('momentum', 'weight_decay', 'nesterov')
  options = {name: config['optimizer'][name] for name in names}
  weights = list(network.parameters())
  updates = torch.optim.SGD(weights, rate, fused=True, **options)
  dtype = getattr(torch, config['model']['dtype'])
  is_mixed = dtype != torch.float32

  def forward(images, labels):
    with torch.autocast(device.type, dtype, enabled=is_mixed):
      logits = network(images).float()
    loss = functional.cross_entropy(logits, labels)
    if network.training:
      return loss, 0
    return loss, (logits.argmax(1) == labels).sum()

  if kind == 'compile':
    # By itself it takes the batch that follows the check for one of any size.
    forward = torch.compile(forward, dynamic=False)

  def run(part, number):
    network.train(part == 'train')
    for _ in range(number):
      if part == 'train':
        updates.zero_grad(set_to_none=True)
        loss, _ = forward(images, labels)
        loss.backward()
        updates.step()
      else:
        with torch.inference_mode():
          loss, _ = forward(images, labels)
    return float(loss.detach())

  return run, {'parameters': sum(w.numel() for w in weights)}


def _torch_network(config):
  """Returns the network of images [batch, channels, size, size]."""
  from torch import nn

  make = {
    # It divides alpha by the size.
    'lrn': lambda n, alpha, *more: nn.LocalResponseNorm(n, alpha * n, *more),
    'pool': nn.MaxPool2d,
    'dense': nn.LazyLinear,
    'dropout': nn.Dropout,
    'flatten': nn.Flatten,
    'relu': lambda: nn.ReLU(inplace=True),
    'tanh': nn.Tanh,
  }
  network = nn.Sequential()
  for kind, name, numbers, (before, after) in _layers(config):
    if kind == 'conv':
      width, stride, features, groups, _ = numbers
      pads = before if before == after else 0
      if before != after:
        network.add_module(f'pad_{name}', nn.ZeroPad2d((before, after) * 2))
      layer = nn.LazyConv2d(features, width, stride, pads, groups=groups)
    else:
      layer = make[kind](*numbers)
    network.add_module(name, layer)
  return network


def _torch_load(network, params):
  import torch
  from torch import nn

  channels = [m.out_channels for m in network if isinstance(m, nn.Conv2d)][-1]
  first_dense = next(m for m in network if isinstance(m, nn.Linear))
  with torch.no_grad():
    for name, leaves in params.items():
      layer = network.get_submodule(name)
      weight = torch.from_numpy(leaves['kernel']).movedim((-1, -2), (0, 1))
      if layer is first_dense:  # flattened here as [channels, height, width]
        weight = weight.unflatten(1, (-1, channels)).movedim(2, 1).flatten(1)
      layer.weight.copy_(weight)
      layer.bias.copy_(torch.from_numpy(leaves['bias']))


def _keras_steps(kind, config, start, platform):
  """Runs `plain` or `jit_compile`."""
  import keras
  import tensorflow as tf

  if platform != 'gpu':
    tf.config.set_visible_devices([], 'GPU')
  elif not tf.config.get_visible_devices('GPU'):
    raise RuntimeError('TensorFlow sees no GPU, but ours runs on one')
  options, dtype = config['optimizer'], config['model']['dtype']
  mixed = '' if dtype == 'float32' else 'mixed_'
  keras.config.set_dtype_policy(mixed + dtype)
  params, images, labels = start
  network = keras.Sequential([keras.layers.Input(images.shape[1:])])
  for layer in _keras_layers(config):
    network.add(layer)
  for name, leaves in (params or {}).items():
    network.get_layer(name).set_weights([leaves['kernel'], leaves['bias']])
  variables = network.trainable_variables
  names = ('learning_rate', 'momentum', 'nesterov')
  updates = keras.optimizers.SGD(**{name: options[name] for name in names})
  updates.build(variables)
  images, labels = tf.constant(images), tf.constant(labels)

  def forward(images, labels, training):
    logits = tf.cast(network(images, training=training), tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.reduce_mean(losses), logits

  def train(images, labels):
    with tf.GradientTape() as tape:
      loss, _ = forward(images, labels, training=True)
    grads = tape.gradient(loss, [v.value for v in variables])
    # Keras' own weight decay stands outside of the momentum.
    decay = options['weight_decay']
    grads = [g + decay * w for g, w in zip(grads, variables, strict=True)]
    updates.apply(grads, variables)
    return loss, 0

  def evaluate(images, labels):
    loss, logits = forward(images, labels, training=False)
    best = tf.argmax(logits, 1, tf.int32)
    return loss, tf.reduce_sum(tf.cast(best == labels, tf.int32))

  wrap = tf.function(jit_compile=kind == 'jit_compile')
  steps = {'train': wrap(train), 'evaluate': wrap(evaluate)}

  def run(part, number):
    for _ in range(number):
      loss, _ = steps[part](images, labels)
    return float(loss)

  return run, {'parameters': network.count_params()}


def _keras_layers(config):
  """Yields the layers for images [batch, size, size, channels]."""
  import keras
  import tensorflow as tf

  def lrn(size, alpha, beta, k, name):
    def normalize(x):  # TensorFlow's has no bfloat16
      wide = tf.cast(x, tf.float32)
      return tf.cast(tf.nn.lrn(wide, size // 2, k, alpha, beta), x.dtype)

    return keras.layers.Lambda(normalize, name=name)

  make = {
    'lrn': lrn,
    'pool': keras.layers.MaxPooling2D,
    'dense': keras.layers.Dense,
    'dropout': keras.layers.Dropout,
    'flatten': keras.layers.Flatten,
    'relu': keras.layers.ReLU,
    'tanh': functools.partial(keras.layers.Activation, 'tanh'),
  }
  for kind, name, numbers, pads in _layers(config):
    if kind == 'conv':
      width, stride, features, groups, padding = numbers
      if not isinstance(padding, str):
        yield keras.layers.ZeroPadding2D((pads, pads), name=f'pad_{name}')
        padding = 'valid'
      shape = features, width, stride, padding
      yield keras.layers.Conv2D(*shape, groups=groups, name=name)
    else:
      yield make[kind](*numbers, name=name)
