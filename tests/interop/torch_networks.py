"""AlexNets as one writes them in PyTorch; nothing here is of the product.

The names of the weights are those that PyTorch itself gives.
"""

import numpy as np
import torch
from torch import nn


def torchvision_alexnet(num_classes=1000, width=1.0):
  """torchvision.models.alexnet, from its documented architecture."""

  def scaled(channels):
    return round(channels * width)

  class AlexNet(nn.Module):
    def __init__(self):
      super().__init__()
      self.features = nn.Sequential(
        nn.Conv2d(3, scaled(64), kernel_size=11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(scaled(64), scaled(192), kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(scaled(192), scaled(384), kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(scaled(384), scaled(256), kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(scaled(256), scaled(256), kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
      )
      self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
      self.classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(scaled(256) * 6 * 6, scaled(4096)),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(scaled(4096), scaled(4096)),
        nn.ReLU(),
        nn.Linear(scaled(4096), num_classes),
      )

    def forward(self, x):
      return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

  return AlexNet()


class Network(nn.Module):
  """`features` and `classifier`."""

  def __init__(self, features, classifier):
    super().__init__()
    self.features = nn.Sequential(*features)
    self.classifier = nn.Sequential(*classifier)

  def forward(self, x):
    return self.classifier(torch.flatten(self.features(x), 1))


def paper(classes, channels, hidden, caffe, width=6, dropout=0.5):
  """Two towers and LRN; `caffe` has bvlc_alexnet's constants and padding.

  PyTorch's LocalResponseNorm divides alpha by the size, as Caffe's: the paper's
  alpha becomes five times as large.
  """
  a, b, c, d, e = channels
  lrn = (5, 1e-4, 0.75, 1.0) if caffe else (5, 5e-4, 0.75, 2.0)
  first = [nn.Conv2d(3, a, 11, 4)]
  if not caffe:
    first.insert(0, nn.ZeroPad2d((2, 1, 2, 1)))
  features = [
    *first,
    *(nn.ReLU(), nn.LocalResponseNorm(*lrn), nn.MaxPool2d(3, 2)),
    nn.Conv2d(a, b, 5, padding=2, groups=2),
    *(nn.ReLU(), nn.LocalResponseNorm(*lrn), nn.MaxPool2d(3, 2)),
    *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(c, d, 3, padding=1, groups=2), nn.ReLU()),
    *(nn.Conv2d(d, e, 3, padding=1, groups=2), nn.ReLU()),
    nn.MaxPool2d(3, 2),
  ]
  classifier, inputs = [], e * width**2
  for units in hidden:
    classifier += [nn.Linear(inputs, units), nn.ReLU()]
    classifier += [nn.Dropout(dropout)] if dropout else []
    inputs = units
  return Network(features, [*classifier, nn.Linear(inputs, classes)])


def batch_norm(classes, channels, hidden, everywhere, width=6, dropout=0.5):
  """alexnet_bn, or with `everywhere` alexnet_bn_all; PyTorch's epsilon."""
  features, inputs = [], 3
  for number, units in enumerate(channels, 1):
    kernel = (11, 5, 3, 3, 3)[number - 1]
    if number == 1:
      # "same" for 224 pixels and a stride of 4: 7 pixels, the odd one behind.
      pad = [] if everywhere else [nn.ZeroPad2d((3, 4, 3, 4))]
      features += [*pad, nn.Conv2d(inputs, units, kernel, 4)]
    else:
      features.append(nn.Conv2d(inputs, units, kernel, padding=kernel // 2))
    if everywhere:
      features += [nn.ReLU(), nn.BatchNorm2d(units)]
    elif number <= 2:
      features += [nn.BatchNorm2d(units), nn.ReLU()]
    else:
      features.append(nn.ReLU())
    if number in (1, 2, 5):
      features.append(nn.MaxPool2d(3, 2))
    inputs = units
  classifier, inputs = [], inputs * width**2
  for units in hidden:
    classifier += [nn.Linear(inputs, units), nn.ReLU()]
    classifier += [nn.Dropout(dropout)] if dropout else []
    inputs = units
  return Network(features, [*classifier, nn.Linear(inputs, classes)])


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
  """Of images [batch, height, width, 3], float32 numpy."""
  with torch.inference_mode():
    return network(torch.from_numpy(np.moveaxis(images, 3, 1).copy())).numpy()
