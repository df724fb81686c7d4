"""The steps that `bench step` runs in processes; PyTorch's and Keras' step.

This imports no JAX, and of the others only the library that a process runs.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import math
import os
import time

import numpy as np

from alexnet_jax.bench import report
from alexnet_jax.errors import UserError

CHECKED_STEPS = 3
_LEAST_STEPS = 2  # in a measurement
# What the others have no counterpart of, and the value that leaves it out: in
# the network, and of updates all but SGD with momentum at a constant rate.
_PLAIN = {
  'model.norm': 'lrn',
  'model.norm_hidden': (),
  'model.block_order': (),
  'model.lrn_groups': 1,
  'model.dropout_scaling': 'training',
  'optimizer.name': 'sgd',
  'optimizer.rate_scaling': 'none',
  'optimizer.decoupled_decay': False,
  'optimizer.decay': 'all',
  'optimizer.bias_lr_multiplier': 1.0,
  'loss.label_smoothing': 0.0,
  'loss.l1': 0.0,
  'loss.l2': 0.0,
}


def check_config(config: dict) -> None:
  """Refuses a network, a loss or an optimizer that the others do not have.

  Args:
    config: the config, as a dict of groups.

  Raises:
    UserError: naming the key.
  """
  for key, plain in _PLAIN.items():
    group, _, name = key.partition('.')
    value = config[group][name]
    if value != plain and (key, value) != ('model.norm', 'none'):
      raise UserError(
        f'--against: config.{key} is {value!r}, which is not written for the'
        f' others; compare with --config.{key}={plain}, or leave --against out'
      )


class Handler:
  """Answers requests for one candidate; see `workers`."""

  def __init__(self, candidate: str):
    """Takes the name of a candidate, such as torch eager."""
    self._make = functools.partial(make_steps, candidate)
    self._counts = {}

  def check(self, task: dict, start: tuple | None = None) -> dict:
    """Makes a few updates; returns their losses, and what describes it all.

    Args:
      task: as for `make_steps`.
      start: the same.
    """
    run, facts = self._make(task, start)
    losses = [run('train', 1) for _ in range(CHECKED_STEPS)]
    return {'losses': losses, **facts}

  def build(self, task: dict) -> dict:
    """Makes the network, and compiles nothing; returns what describes it."""
    self._run, facts = self._make(task)
    return facts

  def measure(self, part: str, least_seconds: float) -> dict:
    """Times steps, after one that is not timed; the first call compiles.

    Args:
      part: train or evaluate.
      least_seconds: what a measurement of more than 2 steps takes.

    Returns:
      {compile_seconds} of the first call for a part; then {seconds: of a step}.
    """
    if part not in self._counts:
      first, step = self._time(part, 1), self._time(part, _LEAST_STEPS)
      self._counts[part] = max(_LEAST_STEPS, math.ceil(least_seconds / step))
      return {'compile_seconds': max(0.0, first - step)}
    self._time(part, 1)  # caches and cores are the last candidate's still
    return {'seconds': self._time(part, self._counts[part])}

  def _time(self, part, number):
    start = time.perf_counter()
    loss = self._run(part, number)
    seconds = time.perf_counter() - start
    if not math.isfinite(loss):
      raise ArithmeticError(f'its loss is {loss}')
    return seconds / number

  def memory(self) -> int | None:
    """Returns the largest resident memory so far; None where not known."""
    return report.resident_bytes('VmHWM')


def layers(model: dict, num_classes: int) -> Iterator[tuple]:
  """Yields (kind, name, numbers...) of the layers in order of execution.

  Names are those of the parameters in flax. The numbers of `conv` are features,
  kernel, stride, padding and groups, that of `dense` is features; `relu`,
  `lrn`, `pool`, `flatten` and `dropout` have none.

  Args:
    model: `config.model` of a config that `check_config` takes.
    num_classes: number of logits.
  """

  def scaled(width, divisor=1):
    if (factor := model['width_multiplier']) == 1.0:
      return width
    return max(divisor, round(width * factor / divisor) * divisor)

  shapes = (model[k] for k in ('kernels', 'strides', 'paddings', 'groups'))
  convolutions = zip(model['channels'], *shapes, strict=True)
  for number, (channels, *shape) in enumerate(convolutions, 1):
    width = scaled(channels, max(model['groups']))
    yield 'conv', f'conv{number}', width, *shape
    after = [('relu', f'relu{number}')]
    if model['norm'] == 'lrn' and number in model['norm_layers']:
      after.append(('lrn', f'lrn{number}'))
    yield from reversed(after) if model['norm_before_relu'] else after
    if number in model['pool_layers']:
      yield 'pool', f'pool{number}'
  yield 'flatten', 'flatten'
  for number, width in enumerate(model['hidden'], 1):
    hidden = ('dense', f'dense{number}', scaled(width))
    parts = [hidden, ('relu', f'dense_relu{number}')]
    dropout_first = model['dropout_position'] == 'before'
    parts.insert(0 if dropout_first else 2, ('dropout', f'dropout{number}'))
    yield from parts
  yield 'dense', 'head', num_classes


def make_steps(
  candidate: str, task: dict, start: tuple | None = None
) -> tuple[Callable, dict]:
  """Builds network, optimizer and a batch that stays on the device.

  Args:
    candidate: such as torch eager, keras jit_compile, ours.
    task: see `step.py`.
    start: (params, images, labels) to begin with; None: the library's own
      weights and float32 noise. Params are {layer: {kernel, bias}} as flax has
      them: kernels [height, width, in, out] and [in, out], where `in` of the
      first dense layer is a flattened [height, width, channels]. Images are
      float32 [batch, height, width, 3].

  Returns:
    (run, {parameters: how many, ...}). `run(part, number)` makes that many
    steps, train or evaluate, waits for them, and returns the mean loss of the
    batch in the last one, before its update.
  """
  library, _, kind = candidate.partition(' ')
  if library == 'ours':
    from alexnet_jax.bench import step_ours

    return step_ours.make_steps(kind, task, start)
  config = task['config']
  rng, size = np.random.default_rng(0), config['data']['crop_size']
  shape = (config['global_batch_size'], size, size, 3)
  params, images, labels = start or (
    None,
    rng.standard_normal(shape, np.float32),
    rng.integers(0, task['num_classes'], shape[:1], np.int32),
  )
  make = {'torch': _torch_steps, 'keras': _keras_steps}[library]
  return make(kind, task, params, images, labels)


def _torch_steps(kind, task, params, images, labels):
  """Runs `eager`, `channels_last` or `compile`."""
  import torch
  from torch.nn import functional

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model, optimizer = task['config']['model'], task['config']['optimizer']
  device = torch.device('cuda' if task['platform'] == 'gpu' else 'cpu')
  if device.type == 'cuda':  # as JAX computes float32 there
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = True
  layout = (
    torch.channels_last if kind == 'channels_last' else torch.contiguous_format
  )
  images = torch.from_numpy(images).permute(0, 3, 1, 2)
  images = images.to(device).contiguous(memory_format=layout)
  labels = torch.from_numpy(labels).to(device, torch.int64)
  network = _torch_network(model, task['num_classes'])
  with torch.no_grad():  # the first call makes the parameters
    network(torch.zeros(1, *images.shape[1:]))
  if params:
    _torch_load(network, params)
  network.to(device, memory_format=layout)
  updates = torch.optim.SGD(
    network.parameters(),
    lr=optimizer['learning_rate'],
    momentum=optimizer['momentum'],
    weight_decay=optimizer['weight_decay'],
    nesterov=optimizer['nesterov'],
    fused=True,
  )
  dtype = getattr(torch, model['dtype'])
  precision = functools.partial(
    torch.autocast, device.type, dtype, enabled=dtype != torch.float32
  )

  def loss_and_logits(images, labels):
    with precision():
      logits = network(images).float()
    return functional.cross_entropy(logits, labels), logits

  def loss_and_top1(images, labels):
    loss, logits = loss_and_logits(images, labels)
    return loss, (logits.argmax(1) == labels).sum()

  wrap = torch.compile if kind == 'compile' else lambda function: function
  forward = wrap(lambda *batch: loss_and_logits(*batch)[0])
  evaluate = wrap(loss_and_top1)

  def run(part, number):
    network.train(part == 'train')
    for _ in range(number):
      if part == 'train':
        updates.zero_grad(set_to_none=True)
        loss = forward(images, labels)
        loss.backward()
        updates.step()
      else:
        with torch.inference_mode():
          loss, _ = evaluate(images, labels)
    return float(loss.detach())

  return run, {'parameters': sum(w.numel() for w in network.parameters())}


def _torch_network(model, num_classes):
  """Returns the network of images [batch, 3, size, size], with our names."""
  from torch import nn

  network = nn.Sequential()
  for kind, name, *numbers in layers(model, num_classes):
    match kind:
      case 'conv':
        width, kernel, stride, padding, groups = numbers
        if padding == 'SAME' and stride > 1:
          raise NotImplementedError('SAME of a stride is not written for torch')
        if isinstance(padding, str):
          padding = padding.lower()
        elif not isinstance(padding, int):
          pad = nn.ZeroPad2d((*padding, *padding))
          network.add_module(f'pad_{name}', pad)
          padding = 0
        part = nn.LazyConv2d(width, kernel, stride, padding, groups=groups)
      case 'lrn':
        size = model['lrn_size']
        # torch divides alpha by the size, as Caffe does.
        by = size if model['lrn_convention'] == 'paper' else 1
        numbers = by * model['lrn_alpha'], model['lrn_beta'], model['lrn_k']
        part = nn.LocalResponseNorm(size, *numbers)
      case 'pool':
        part = nn.MaxPool2d(model['pool_size'], model['pool_stride'])
      case 'dense':
        part = nn.LazyLinear(*numbers)
      case 'dropout':
        part = nn.Dropout(model['dropout'])
      case 'flatten':
        part = nn.Flatten()
      case 'relu':
        part = nn.ReLU(inplace=True)
    network.add_module(name, part)
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


def _keras_steps(kind, task, params, images, labels):
  """Runs `plain` or `jit_compile`."""
  import keras
  import tensorflow as tf

  threads = len(os.sched_getaffinity(0))
  tf.config.threading.set_intra_op_parallelism_threads(threads)
  tf.config.threading.set_inter_op_parallelism_threads(threads)
  if task['platform'] != 'gpu':
    tf.config.set_visible_devices([], 'GPU')
  elif not tf.config.get_visible_devices('GPU'):
    raise RuntimeError('TensorFlow sees no GPU, but ours runs on one')
  model, optimizer = task['config']['model'], task['config']['optimizer']
  dtype, decay = model['dtype'], optimizer['weight_decay']
  keras.config.set_dtype_policy(
    dtype if dtype == 'float32' else f'mixed_{dtype}'
  )
  keras.utils.set_random_seed(0)
  network = keras.Sequential([keras.layers.Input(images.shape[1:])])
  for layer in layers(model, task['num_classes']):
    for part in _keras_layers(model, *layer):
      network.add(part)
  for name, leaves in (params or {}).items():
    network.get_layer(name).set_weights([leaves['kernel'], leaves['bias']])
  variables = network.trainable_variables
  updates = keras.optimizers.SGD(
    optimizer['learning_rate'],
    momentum=optimizer['momentum'],
    nesterov=optimizer['nesterov'],
  )
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


def _keras_layers(model, kind, name, *numbers):
  """Yields the parts of a layer of images [batch, size, size, channels]."""
  import keras
  import tensorflow as tf

  match kind:
    case 'conv':
      width, kernel, stride, padding, groups = numbers
      if not isinstance(padding, str):
        pads = (padding, padding) if isinstance(padding, int) else padding
        yield keras.layers.ZeroPadding2D((tuple(pads), tuple(pads)))
        padding = 'valid'
      yield keras.layers.Conv2D(
        width, kernel, stride, padding.lower(), groups=groups, name=name
      )
    case 'lrn':
      # TensorFlow does not divide alpha by the size, and has no bfloat16.
      size = model['lrn_size']
      by = 1 if model['lrn_convention'] == 'paper' else size
      numbers = model['lrn_k'], model['lrn_alpha'] / by, model['lrn_beta']

      def norm(x):
        wide = tf.cast(x, tf.float32)
        return tf.cast(tf.nn.lrn(wide, size // 2, *numbers), x.dtype)

      yield keras.layers.Lambda(norm, name=name)
    case 'pool':
      yield keras.layers.MaxPooling2D(model['pool_size'], model['pool_stride'])
    case 'dense':
      yield keras.layers.Dense(*numbers, name=name)
    case 'dropout':
      yield keras.layers.Dropout(model['dropout'])
    case 'flatten':
      yield keras.layers.Flatten()
    case 'relu':
      yield keras.layers.ReLU()
