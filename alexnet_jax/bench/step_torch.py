"""The train and evaluation step in PyTorch, for `bench step`."""

import contextlib
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from alexnet_jax.bench import step_peers


def make_network(model: dict, num_classes: int, size: int) -> nn.Sequential:
  """Returns the network of images [batch, 3, size, size], with our names.

  Args:
    model: `config.model` of the config.
    num_classes: number of logits.
    size: width of the images, in pixels.

  Raises:
    NotImplementedError: if the network has what this has not.
  """
  network = nn.Sequential()
  shape = (1, 3, size, size)
  for layer in step_peers.layers(model, num_classes):
    for name, module in _modules(layer, model, shape[1]):
      network.add_module(name, module)
      with torch.no_grad():
        shape = module(torch.zeros(shape)).shape
  return network


def _modules(layer, model, features):
  """Yields (name, module) of a layer."""
  if layer.kind == 'conv':
    yield from _convolution(layer, model, features)
  elif layer.kind == 'lrn':
    size = model['lrn_size']
    # torch divides alpha by the size, as Caffe does.
    times = size if model['lrn_convention'] == 'paper' else 1
    numbers = (times * model['lrn_alpha'], model['lrn_beta'], model['lrn_k'])
    yield layer.name, nn.LocalResponseNorm(size, *numbers)
  elif layer.kind == 'pool':
    yield layer.name, nn.MaxPool2d(model['pool_size'], model['pool_stride'])
  elif layer.kind == 'dense':
    yield layer.name, nn.Linear(features, layer.width)
  elif layer.kind == 'dropout':
    yield layer.name, nn.Dropout(model['dropout'])
  else:
    flatten = layer.kind == 'flatten'
    yield layer.name, nn.Flatten() if flatten else nn.ReLU(inplace=True)


def _convolution(layer, model, features):
  kernel, stride, padding, groups = (
    model[key][layer.index]
    for key in ('kernels', 'strides', 'paddings', 'groups')
  )
  if padding == 'SAME' and stride > 1:
    raise NotImplementedError('SAME of a stride is not written for torch')
  if isinstance(padding, str):
    padding = padding.lower()
  elif not isinstance(padding, int):
    yield f'pad_{layer.name}', nn.ZeroPad2d((*padding, *padding))
    padding = 0
  yield (
    layer.name,
    nn.Conv2d(features, layer.width, kernel, stride, padding, groups=groups),
  )


class Runner:
  """Network, optimizer and a batch that stays on the device."""

  def __init__(self, kind: str, task: dict):
    """Builds them.

    Args:
      kind: eager, channels_last or compile.
      task: see `step.make_task`.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = task['config']
    self._device = torch.device('cuda' if task['platform'] == 'gpu' else 'cpu')
    if self._device.type == 'cuda':  # as JAX computes float32 there
      torch.set_float32_matmul_precision('high')
      torch.backends.cudnn.benchmark = True
    self._dtype = getattr(torch, config['model']['dtype'])
    self._layout = (
      torch.channels_last
      if kind == 'channels_last'
      else torch.contiguous_format
    )
    network = make_network(
      config['model'], task['num_classes'], config['data']['crop_size']
    )
    self._network = network.to(self._device, memory_format=self._layout)
    optimizer = config['optimizer']
    self._optimizer = torch.optim.SGD(
      self._network.parameters(),
      lr=optimizer['learning_rate'],
      momentum=optimizer['momentum'],
      weight_decay=optimizer['weight_decay'],
      nesterov=optimizer['nesterov'],
      fused=True,
    )
    wrap = torch.compile if kind == 'compile' else lambda function: function
    self._forward, self._count = wrap(self._loss), wrap(self._top1)
    self._set_batch(*step_peers.noise_batch(task))

  def _set_batch(self, images, labels):
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    self._images = images.to(self._device).contiguous(
      memory_format=self._layout
    )
    self._labels = torch.from_numpy(labels).to(self._device, torch.int64)

  def load(self, params: dict, images: np.ndarray, labels: np.ndarray) -> None:
    """Takes weights and a batch; see `step_ours.Runner.reference`."""
    self._set_batch(images, labels)
    convolutions = [m for m in self._network if isinstance(m, nn.Conv2d)]
    first_dense = next(m for m in self._network if isinstance(m, nn.Linear))
    with torch.no_grad():
      for name, leaves in params.items():
        layer = self._network.get_submodule(name)
        weight = torch.from_numpy(leaves['kernel']).movedim((-1, -2), (0, 1))
        if layer is first_dense:  # flattened here as [channels, height, width]
          channels = convolutions[-1].out_channels
          weight = weight.unflatten(1, (-1, channels)).movedim(2, 1).flatten(1)
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.from_numpy(leaves['bias']))

  def describe(self) -> dict:
    """Returns {parameters: how many}."""
    return {'parameters': sum(w.numel() for w in self._network.parameters())}

  def _logits(self, images):
    precision = contextlib.nullcontext()
    if self._dtype != torch.float32:
      precision = torch.autocast(self._device.type, self._dtype)
    with precision:
      return self._network(images).float()

  def _loss(self, images, labels):
    return functional.cross_entropy(self._logits(images), labels)

  def _top1(self, images, labels):
    logits = self._logits(images)
    loss = functional.cross_entropy(logits, labels)
    return loss, (logits.argmax(1) == labels).sum()

  def train(self) -> torch.Tensor:
    """Makes an update; returns the mean loss of the batch before it."""
    self._network.train()
    self._optimizer.zero_grad(set_to_none=True)
    loss = self._forward(self._images, self._labels)
    loss.backward()
    self._optimizer.step()
    return loss.detach()

  def evaluate(self) -> torch.Tensor:
    """Evaluates the batch; returns its mean loss."""
    self._network.eval()
    with torch.inference_mode():
      return self._count(self._images, self._labels)[0]

  def loss(self, loss: torch.Tensor) -> float:
    """Waits for a step; returns its mean loss."""
    return float(loss)
