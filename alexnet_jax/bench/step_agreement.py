"""Whether all contenders of `bench step` compute the same thing.

From equal weights and on equal images each one makes a few updates without
dropout; the losses before each of them must agree. The first tells whether the
networks are the same, the others whether gradients and updates are. The
weights are those of an initialization under which the losses of different
networks differ: with the paper's, every network says ln(classes).
"""

from collections.abc import Mapping
import copy
import pathlib

import numpy as np

STEPS = 3
_BATCH_SIZE = 8  # of one device
_RATE = 2e-4  # larger ones overshoot, and roundings grow
# Relative: what other orders of the same sums make of float32, and what
# rounding at other places makes of bfloat16.
TOLERANCES = {'float32': 1e-3, 'bfloat16': 3e-2}
# Of the losses, in tolerances: updates that are wrong must be seen.
_LEAST_CHANGE = 2
_FILE = 'agreement.npz'


def make_task(task: Mapping, device_count: int) -> dict:
  """The task of the check that belongs to one of `step.make_task`."""
  checked = copy.deepcopy(dict(task))
  config = checked['config']
  most = max(1, config['global_batch_size'] // device_count)
  config['global_batch_size'] = device_count * min(_BATCH_SIZE, most)
  config['microbatch_size'] = 0
  config['model']['dropout'] = 0.0
  config['model']['kernel_init'] = 'he'
  config['data']['std'] = 60.0  # that of the pixels, more or less
  config['optimizer']['learning_rate'] = _RATE
  return checked


def write(
  folder: str, params: Mapping, images: np.ndarray, labels: np.ndarray
) -> None:
  """Writes weights and batch.

  Args:
    folder: where.
    params: {layer: {kernel, bias}} as flax has them: kernels [height, width,
      in, out] and [in, out], where `in` of the first dense layer is a flattened
      [height, width, channels].
    images: float32 [batch, height, width, 3], mirrored and normalized.
    labels: int32 [batch].
  """
  arrays = {'images': images, 'labels': labels}
  for layer, leaves in params.items():
    for leaf, value in leaves.items():
      arrays[f'{layer}/{leaf}'] = np.asarray(value)
  np.savez(pathlib.Path(folder) / _FILE, **arrays)


def read(folder: str) -> tuple[dict, np.ndarray, np.ndarray]:
  """(params, images, labels) as they were written."""
  params = {}
  with np.load(pathlib.Path(folder) / _FILE) as arrays:
    for name in arrays.files:
      layer, _, leaf = name.partition('/')
      if leaf:
        params.setdefault(layer, {})[leaf] = arrays[name]
    return params, arrays['images'], arrays['labels']


def difference(ours: Mapping, other: Mapping, dtype: str) -> str:
  """What is not the same, or cannot be seen; '' if all is well.

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
  said, expected = (
    ', '.join(f'{loss:.5f}' for loss in losses)
    for losses in (other['losses'], ours['losses'])
  )
  return (
    f'from equal weights its losses are {said} instead of {expected}'
    f' (tolerance: {tolerance:g} of them)'
  )
