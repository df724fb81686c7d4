"""The candidates of `bench step`: each in its process, checked and timed.

`layers` describes the network of a config for PyTorch and Keras to build.
Nothing here needs JAX.

All candidates must compute the same: from equal weights and on equal images
each one makes a few updates without dropout, and the losses before each of them
must agree. The first tells whether the networks are the same, the others
whether gradients and updates are. The weights are those of an initialization
under which the losses of different networks differ: with the paper's, every
network says ln(classes).
"""

from collections.abc import Mapping
import copy
import dataclasses
import importlib
import time

import numpy as np

from alexnet_jax.bench import machine
from alexnet_jax.errors import UserError

# What the peers have no counterpart of, and the value that leaves it out.
_PLAIN_NETWORK = {
  'norm_hidden': (),
  'block_order': (),
  'lrn_groups': 1,
  'dropout_scaling': 'training',
}
# The peers make the updates of SGD with momentum at a constant learning rate.
_PLAIN_UPDATES = {
  'optimizer.name': 'sgd',
  'optimizer.rate_scaling': 'none',
  'optimizer.decoupled_decay': False,
  'optimizer.decay': 'all',
  'optimizer.bias_lr_multiplier': 1.0,
  'loss.label_smoothing': 0.0,
  'loss.l1': 0.0,
  'loss.l2': 0.0,
}

CHECKED_STEPS = 3
_BATCH_SIZE = 8  # of one device
_LEARNING_RATE = 2e-4  # larger ones overshoot, and roundings grow
# Relative: what other orders of the same sums make of float32, and what
# rounding at other places makes of bfloat16.
TOLERANCES = {'float32': 1e-3, 'bfloat16': 3e-2}
# In tolerances: a smaller change of the losses would hide wrong updates.
_LEAST_CHANGE = 2


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer of the network.

  Attributes:
    kind: conv, relu, lrn, pool, flatten, dropout or dense.
    name: unique; that of the parameters in flax.
    width: features of a conv or dense layer.
    index: of a conv layer, in the config's tuples of kernels, strides etc.
  """

  kind: str
  name: str
  width: int = 0
  index: int = 0


def layers(model: dict, num_classes: int) -> list[Layer]:
  """Returns the layers of a network in order of execution.

  Args:
    model: `config.model` of the config.
    num_classes: number of logits.

  Raises:
    NotImplementedError: if the peers lack something that the network has.
  """
  _check_network(model)
  found = []
  for index, channels in enumerate(model['channels']):
    number = index + 1
    width = _scaled(channels, model, max(model['groups']))
    found.append(Layer('conv', f'conv{number}', width, index))
    after = [Layer('relu', f'relu{number}')]
    if model['norm'] == 'lrn' and number in model['norm_layers']:
      lrn = Layer('lrn', f'lrn{number}')
      after.insert(0 if model['norm_before_relu'] else 1, lrn)
    if number in model['pool_layers']:
      after.append(Layer('pool', f'pool{number}'))
    found += after
  found.append(Layer('flatten', 'flatten'))
  for number, width in enumerate(model['hidden'], 1):
    hidden = [
      Layer('dense', f'dense{number}', _scaled(width, model)),
      Layer('relu', f'dense_relu{number}'),
    ]
    dropout = [Layer('dropout', f'dropout{number}')]
    before = model['dropout_position'] == 'before'
    found += dropout + hidden if before else hidden + dropout
  return [*found, Layer('dense', 'head', num_classes)]


def _check_network(model):
  if model['norm'] == 'batch':
    raise NotImplementedError('batch norm is not written for the peers')
  for key, plain in _PLAIN_NETWORK.items():
    value = model.get(key, plain)
    if (tuple(value) if isinstance(value, list) else value) != plain:
      raise NotImplementedError(
        f'model.{key} = {value!r} is not written for the peers'
      )


def _scaled(width, model, divisor=1):
  factor = model['width_multiplier']
  if factor == 1.0:
    return width
  return max(divisor, round(width * factor / divisor) * divisor)


def check_updates(config: dict) -> None:
  """Refuses a loss or an optimizer that the peers do not have.

  Args:
    config: the config, as a dict of groups.

  Raises:
    UserError: naming the key.
  """
  for key, plain in _PLAIN_UPDATES.items():
    group, _, name = key.partition('.')
    if (value := config[group][name]) != plain:
      raise UserError(
        f'--against: config.{key} is {value!r}, which is not written for the'
        f' others; compare with --config.{key}={plain}, or leave --against out'
      )


def noise_batch(task: dict) -> tuple[np.ndarray, np.ndarray]:
  """Returns (images, labels): float32 [batch, size, size, 3], int32 [batch]."""
  config = task['config']
  rng = np.random.default_rng(0)
  size = config['data']['crop_size']
  shape = (config['global_batch_size'], size, size, 3)
  images = rng.standard_normal(shape, np.float32)
  return images, rng.integers(0, task['num_classes'], shape[:1], np.int32)


def checked_task(task: Mapping, device_count: int) -> dict:
  """Returns the task of the comparison that belongs to one of `bench step`."""
  checked = copy.deepcopy(dict(task))
  config = checked['config']
  most = max(1, config['global_batch_size'] // device_count)
  config['global_batch_size'] = device_count * min(_BATCH_SIZE, most)
  config['microbatch_size'] = 0
  config['model']['dropout'] = 0.0
  config['model']['kernel_init'] = 'he'
  config['data']['std'] = 60.0  # that of the pixels, more or less
  config['optimizer']['learning_rate'] = _LEARNING_RATE
  return checked


def difference(ours: Mapping, other: Mapping, dtype: str) -> str:
  """Returns what is not the same, or cannot be seen; '' if all is well.

  Args:
    ours, other: {losses, parameters}.
    dtype: of the computation.
  """
  if ours['parameters'] != other['parameters']:
    return (
      f'it has {other["parameters"]:,} parameters instead of'
      f' {ours["parameters"]:,}'
    )
  tolerance = TOLERANCES[dtype]
  first, last = ours['losses'][0], ours['losses'][-1]
  if not abs(last - first) > _LEAST_CHANGE * tolerance * abs(first):
    return (
      f'our own losses go from {first:.5f} to {last:.5f} only, which would hide'
      ' other updates; --skip_check leaves the comparison out'
    )
  if np.allclose(other['losses'], ours['losses'], rtol=tolerance, atol=0):
    return ''
  found, expected = (
    ', '.join(f'{loss:.5f}' for loss in losses)
    for losses in (other['losses'], ours['losses'])
  )
  return (
    f'from equal weights its losses are {found} instead of {expected}'
    f' (tolerance: {tolerance:g} of them)'
  )


class Handler:
  """Answers requests for one candidate; see `workers`."""

  def __init__(self, name: str):
    """Imports its library.

    Args:
      name: of the candidate, such as torch eager: the library, whose module
        step_LIBRARY has the `Runner`, and the kind of runner.
    """
    library, _, self._kind = name.partition(' ')
    module = importlib.import_module(f'alexnet_jax.bench.step_{library}')
    self._make_runner = module.Runner
    self.runner = None
    self._has_run = set()

  def check(self, task: dict, reference: tuple | None = None) -> dict:
    """Makes a few updates; see the module.

    Args:
      task: of `checked_task`.
      reference: the weights and the batch to begin with; None: our own.

    Returns:
      {losses, reference, and what `Runner.describe` returns}.
    """
    runner = self._make_runner(self._kind, task)
    if reference is None:
      reference = runner.reference()
    else:
      runner.load(*reference)
      reference = None  # the other side has it
    losses = [runner.loss(runner.train()) for _ in range(CHECKED_STEPS)]
    return {'losses': losses, 'reference': reference, **runner.describe()}

  def build(self, task: dict) -> dict:
    """Makes the network, and compiles nothing; returns what describes it."""
    self.runner = self._make_runner(self._kind, task)
    return self.runner.describe()

  def run(self, part: str, steps: int) -> dict:
    """Times steps, after one that is not timed.

    Args:
      part: train or evaluate.
      steps: how many.

    Returns:
      {seconds, loss: of the last step, first_seconds: of the very first step,
      which compiles, if that was now}.
    """
    step = getattr(self.runner, part)
    answer = {}
    if part not in self._has_run:
      self._has_run.add(part)
      answer['first_seconds'], _ = self._time(step, 1)
    # Caches and cores are the last candidate's still.
    self._time(step, 1)
    answer['seconds'], answer['loss'] = self._time(step, steps)
    return answer

  def _time(self, step, count):
    start = time.perf_counter()
    for _ in range(count):
      result = step()
    loss = self.runner.loss(result)
    return time.perf_counter() - start, loss

  def memory(self) -> int | None:
    """Returns the largest resident memory so far; None where not known."""
    return machine.resident_bytes('VmHWM')
