"""The network, its training and evaluation step in PyTorch, for `bench step`.

Nothing here needs JAX.
"""

import contextlib
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from alexnet_jax.bench import peer_network
from alexnet_jax.bench import step_agreement


def make_network(model: dict, num_classes: int, size: int) -> nn.Sequential:
  """The network of images [batch, 3, size, size]; layers have our names.

  Args:
    model: `config.model` of the config.
    num_classes: number of logits.
    size: width of the images, in pixels.

  Raises:
    peer_network.NotWritten: if the network has what this has not.
  """
  peer_network.check(model)
  layers = nn.Sequential()
  channels, widths = 3, _widths(model)
  for number, width in enumerate(widths, 1):
    _add_convolution(layers, model, number, channels, width)
    channels = width
    if number in model['pool_layers']:
      pool = nn.MaxPool2d(model['pool_size'], model['pool_stride'])
      layers.add_module(f'pool{number}', pool)
  layers.add_module('flatten', nn.Flatten())
  with torch.no_grad():
    features = layers(torch.zeros(1, 3, size, size)).shape[1]
  for number, hidden in enumerate(model['hidden'], 1):
    width = _scaled(hidden, model)
    dense = [
      (f'dense{number}', nn.Linear(features, width)),
      (f'dense_relu{number}', nn.ReLU(inplace=True)),
    ]
    dropout = (f'dropout{number}', nn.Dropout(model['dropout']))
    before = model['dropout_position'] == 'before'
    for name, layer in [dropout, *dense] if before else [*dense, dropout]:
      layers.add_module(name, layer)
    features = width
  layers.add_module('head', nn.Linear(features, num_classes))
  return layers


def _widths(model):
  groups = max(model['groups'])
  return [_scaled(width, model, groups) for width in model['channels']]


def _scaled(width, model, divisor=1):
  factor = model['width_multiplier']
  if factor == 1.0:
    return width
  return max(divisor, round(width * factor / divisor) * divisor)


def _add_convolution(layers, model, number, channels, width):
  index = number - 1
  kernel, stride = model['kernels'][index], model['strides'][index]
  padding = model['paddings'][index]
  if padding == 'SAME' and stride > 1:
    raise peer_network.NotWritten('SAME of a stride is not written for torch')
  if not isinstance(padding, (int, str)):
    before, after = padding
    pad = nn.ZeroPad2d((before, after, before, after))
    layers.add_module(f'pad{number}', pad)
    padding = 0
  convolution = nn.Conv2d(
    channels,
    width,
    kernel,
    stride,
    padding.lower() if isinstance(padding, str) else padding,
    groups=model['groups'][index],
  )
  layers.add_module(f'conv{number}', convolution)
  after = [(f'relu{number}', nn.ReLU(inplace=True))]
  if model['norm'] == 'lrn' and number in model['norm_layers']:
    size = model['lrn_size']
    # torch divides alpha by the size, as Caffe does.
    times = size if model['lrn_convention'] == 'paper' else 1
    norm = nn.LocalResponseNorm(
      size, times * model['lrn_alpha'], model['lrn_beta'], model['lrn_k']
    )
    after.insert(0 if model['norm_before_relu'] else 1, (f'lrn{number}', norm))
  for name, layer in after:
    layers.add_module(name, layer)


def set_weights(network: nn.Sequential, params: dict) -> None:
  """Copies flax' weights; see `step_agreement.write`."""
  convolutions = [m for m in network if isinstance(m, nn.Conv2d)]
  first_dense = next(m for m in network if isinstance(m, nn.Linear))
  with torch.no_grad():
    for name, leaves in params.items():
      layer = network.get_submodule(name)
      weight = torch.from_numpy(leaves['kernel']).movedim((-1, -2), (0, 1))
      if layer is first_dense:  # flattened here as [channels, height, width]
        channels = convolutions[-1].out_channels
        weight = weight.unflatten(1, (-1, channels)).movedim(2, 1).flatten(1)
      layer.weight.copy_(weight)
      layer.bias.copy_(torch.from_numpy(leaves['bias']))


class Runner:
  """Network, optimizer and a batch that stays on the device."""

  def __init__(self, name: str, task: dict):
    """See `step.make_task`; `name` is torch eager, channels_last or compile."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = task['config']
    self._kind = name.partition(' ')[2]
    self._device = torch.device('cuda' if task['platform'] == 'gpu' else 'cpu')
    if self._device.type == 'cuda':  # as JAX computes float32 there
      torch.set_float32_matmul_precision('high')
      torch.backends.cudnn.benchmark = True
    self._dtype = getattr(torch, config['model']['dtype'])
    size = config['data']['crop_size']
    network = make_network(config['model'], task['num_classes'], size)
    self.network = network.to(self._device, memory_format=self._layout)
    optimizer = config['optimizer']
    self._optimizer = torch.optim.SGD(
      self.network.parameters(),
      lr=optimizer['learning_rate'],
      momentum=optimizer['momentum'],
      weight_decay=optimizer['weight_decay'],
      nesterov=optimizer['nesterov'],
      fused=True,
    )
    compile_it = self._kind == 'compile'
    self._forward = torch.compile(self._loss) if compile_it else self._loss
    self._count = torch.compile(self._top1) if compile_it else self._top1
    rng = np.random.default_rng(0)
    shape = (config['global_batch_size'], size, size, 3)
    self.set_batch(
      rng.standard_normal(shape, np.float32),
      rng.integers(0, task['num_classes'], shape[:1]),
    )

  @property
  def _layout(self):
    if self._kind == 'channels_last':
      return torch.channels_last
    return torch.contiguous_format

  def set_batch(self, images: np.ndarray, labels: np.ndarray) -> None:
    """Takes images [batch, height, width, 3], float32, and labels."""
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    self._images = images.to(self._device).contiguous(
      memory_format=self._layout
    )
    self._labels = torch.from_numpy(labels).to(self._device, torch.int64)

  def describe(self) -> dict:
    """What there is to know without computing."""
    return {'parameters': sum(w.numel() for w in self.network.parameters())}

  def _precision(self):
    if self._dtype == torch.float32:
      return contextlib.nullcontext()
    return torch.autocast(self._device.type, self._dtype)

  def _logits(self, images):
    with self._precision():
      return self.network(images).float()

  def _loss(self, images, labels):
    return functional.cross_entropy(self._logits(images), labels)

  def _top1(self, images, labels):
    logits = self._logits(images)
    loss = functional.cross_entropy(logits, labels)
    return loss, (logits.argmax(1) == labels).sum()

  def train(self) -> torch.Tensor:
    """One update; the mean loss of the batch before it."""
    self.network.train()
    self._optimizer.zero_grad(set_to_none=True)
    loss = self._forward(self._images, self._labels)
    loss.backward()
    self._optimizer.step()
    return loss.detach()

  def _evaluate(self):
    self.network.eval()
    with torch.inference_mode():
      return self._count(self._images, self._labels)[0]

  def step(self, what: str):
    """A step, train or evaluate; its mean loss, which may not be there yet."""
    return {'train': self.train, 'evaluate': self._evaluate}[what]()

  def loss(self, loss) -> float:
    """The same, once the step is done."""
    return float(loss)

  def device_peak(self) -> int | None:
    """Largest memory in use on the device so far; None on the CPU."""
    if self._device.type == 'cpu':
      return None
    return torch.cuda.max_memory_allocated(self._device)


def check(name: str, task: dict, folder: str) -> dict:
  """Losses of a few updates; see `step_agreement`."""
  runner = Runner(name, task)
  params, images, labels = step_agreement.read(folder)
  set_weights(runner.network, params)
  runner.set_batch(images, labels)
  losses = [float(runner.train()) for _ in range(step_agreement.STEPS)]
  return {'losses': losses, **runner.describe()}
