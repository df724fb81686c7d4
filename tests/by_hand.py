"""Layers of a network on one image [height, width, channels], in numpy."""

import numpy as np


def convolve(x, kernel, bias, stride=1, padding=(0, 0), groups=1):
  """A convolution; `padding` is (before, after) of both axes.

  Args:
    kernel: [height, width, in / groups, out], as wide as high.
  """
  x = np.pad(np.float64(x), (padding, padding, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(
    x, kernel.shape[:2], (0, 1)
  )
  parts = zip(
    np.split(windows[::stride, ::stride], groups, 2),
    np.split(kernel, groups, 3),
    strict=True,
  )
  outputs = [
    np.einsum('yxchw,hwco->yxo', seen, weights, optimize=True)
    for seen, weights in parts
  ]
  return np.concatenate(outputs, 2) + np.ravel(bias)


def lrn_factors(x, size, k, alpha, beta):
  """Factors by which a local response normalization multiplies its input."""
  around, count = size // 2, x.shape[-1]
  near = [x[..., max(0, c - around) : c + around + 1] for c in range(count)]
  sums = [(channels**2).sum(-1) for channels in near]
  return (k + alpha * np.stack(sums, -1)) ** -beta


def pool(x, size=3, stride=2):
  """The largest of each window."""
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))
  return windows[::stride, ::stride].max((3, 4))
