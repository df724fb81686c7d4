"""AlexNets as one writes them in PyTorch; nothing here is of the product.

The names of the weights are those that PyTorch itself gives.
"""

import numpy as np
import torch
from torch import nn


class Network(nn.Module):
  """A module with `features` and `classifier`."""

  def __init__(self, features, classifier):
    super().__init__()
    self.features = nn.Sequential(*features)
    self.avgpool = nn.Identity()
    self.classifier = nn.Sequential(*classifier)

  def forward(self, x):
    x = self.avgpool(self.features(x))
    return self.classifier(torch.flatten(x, 1))


def conv(*arguments, pool=False, **options):
  pools = [nn.MaxPool2d(3, 2)] if pool else []
  return [nn.Conv2d(*arguments, **options), nn.ReLU(), *pools]


def torchvision_alexnet(hidden):
  """torchvision.models.alexnet, from its documentation, but for `hidden`."""
  features = conv(3, 64, 11, 4, padding=2, pool=True)
  features += conv(64, 192, 5, padding=2, pool=True)
  features += conv(192, 384, 3, padding=1)
  features += conv(384, 256, 3, padding=1)
  features += conv(256, 256, 3, padding=1, pool=True)
  classifier = [nn.Dropout(), nn.Linear(256 * 6 * 6, hidden[0]), nn.ReLU()]
  classifier += [nn.Dropout(), nn.Linear(*hidden), nn.ReLU()]
  network = Network(features, [*classifier, nn.Linear(hidden[1], 1000)])
  network.avgpool = nn.AdaptiveAvgPool2d((6, 6))
  return network


def dense_part(classes, inputs, hidden, dropout):
  classifier = []
  for units in hidden:
    classifier += [nn.Linear(inputs, units), nn.ReLU()]
    classifier += [nn.Dropout(dropout)] if dropout else []
    inputs = units
  return [*classifier, nn.Linear(inputs, classes)]


def paper(classes, channels, hidden, caffe=False, width=6, dropout=0.5):
  """Two towers and LRN; `caffe` has bvlc_alexnet's constants and padding.

  PyTorch's LocalResponseNorm divides alpha by the size, as Caffe's: the paper's
  alpha becomes five times as large.
  """
  a, b, c, d, e = channels
  lrn = (5, 1e-4, 0.75, 1.0) if caffe else (5, 5e-4, 0.75, 2.0)
  features = [] if caffe else [nn.ZeroPad2d((2, 1, 2, 1))]
  features += conv(3, a, 11, 4)
  features += [nn.LocalResponseNorm(*lrn), nn.MaxPool2d(3, 2)]
  features += conv(a, b, 5, padding=2, groups=2)
  features += [nn.LocalResponseNorm(*lrn), nn.MaxPool2d(3, 2)]
  features += conv(b, c, 3, padding=1)
  features += conv(c, d, 3, padding=1, groups=2)
  features += conv(d, e, 3, padding=1, groups=2, pool=True)
  return Network(features, dense_part(classes, e * width**2, hidden, dropout))


def batch_norm(classes, channels, hidden, width=6, dropout=0.5):
  """alexnet_bn with PyTorch's epsilon."""
  features, inputs = [], 3
  for number, units in enumerate(channels, 1):
    kernel = (11, 5, 3, 3, 3)[number - 1]
    if number == 1:
      # "same" for 224 pixels and a stride of 4: 7 pixels, the odd one behind.
      pad = nn.ZeroPad2d((3, 4, 3, 4))
      features += [pad, nn.Conv2d(inputs, units, kernel, 4)]
    else:
      features.append(nn.Conv2d(inputs, units, kernel, padding=kernel // 2))
    features += [nn.BatchNorm2d(units)] if number <= 2 else []
    features.append(nn.ReLU())
    if number in (1, 2, 5):
      features.append(nn.MaxPool2d(3, 2))
    inputs = units
  classifier = dense_part(classes, inputs * width**2, hidden, dropout)
  return Network(features, classifier)


def randomised(network, seed=0):
  """Weights that keep the numbers at about 1, statistics that do something."""
  generator = torch.Generator().manual_seed(seed)

  def normal(like, scale):
    return scale * torch.randn(like.shape, generator=generator)

  with torch.no_grad():
    for name, weight in network.named_parameters():
      if weight.ndim > 1:
        weight.copy_(normal(weight, (2 / weight[0].numel()) ** 0.5))
      else:
        is_scale = name.endswith('weight')
        weight.copy_(normal(weight, 0.2) + is_scale)
    for name, value in network.named_buffers():
      if name.endswith('running_mean'):
        value.copy_(normal(value, 0.3))
      elif name.endswith('running_var'):
        value.copy_(0.5 + normal(value, 0.5).abs())
  return network.eval()


def logits(network, images):
  """Computes them for images [batch, height, width, 3], float32 numpy."""
  with torch.inference_mode():
    return network(torch.from_numpy(np.moveaxis(images, 3, 1).copy())).numpy()
