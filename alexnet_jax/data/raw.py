"""Raw sets: squares of one size, decoded once, in memory-mapped .npy shards.

`prepare raw` writes them, as the paper had them (Krizhevsky et al. 2012,
section 2): SPLIT-00000-of-00003.npy, uint8 [n, size, size, channels] (3, or 1:
gray); their labels in SPLIT-labels.npy, int32; manifest.json, see
`prepare.raw`. A file that is cut off while it is read ends the process with a
bus error.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import json
import math
import os
import pathlib

import numpy as np

from alexnet_jax import files
from alexnet_jax.data import images, splits
from alexnet_jax.errors import UserError

MANIFEST = 'manifest.json'
FORMAT = 'alexnet_jax raw 1'
_FILE = {'file': str, 'sha256': str}
_SPLIT = {
  'num_examples': int,
  'shards': [{**_FILE, 'num_examples': int}],
  'labels': _FILE,
  'skipped': [str],
  'rgb': {'mean': [(int, float)], 'covariance': [[(int, float)]]},
}
_SHAPE = {
  'format': str,
  'image_size': int,
  'class_names': [str],
  'settings': dict,
  'splits': {str: _SPLIT},
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RawSource(splits.Source):
  """A split of a raw set."""

  name: str
  class_names: Sequence[str]
  fingerprint: str
  square_size: int  # pixels
  channels: int  # 3, or 1: gray, which `read` repeats
  rgb_mean: np.ndarray  # of all pixels, float64 [3]
  rgb_covariance: np.ndarray  # float64 [3, 3]
  labels: np.ndarray  # int32 [n]
  shards: Sequence[np.ndarray]  # memory-mapped, uint8 [n, size, size, channels]
  ends: np.ndarray  # index behind the last example of each shard
  starts: np.ndarray  # address of each square, uint64 [n]

  def read(self, index: int) -> tuple[np.ndarray, int]:
    number = int(np.searchsorted(self.ends, index, side='right'))
    # Counted from the end of its shard.
    pixels = self.shards[number][index - int(self.ends[number])]
    return images.as_rgb(pixels), int(self.labels[index])

  def addresses(self, indices: np.ndarray) -> np.ndarray:
    """Returns the addresses of some squares in memory, uint64 [n]."""
    return self.starts[indices]


def raw_source(path: str, split: str) -> RawSource:
  """Opens a split of a raw set; `prepare check` verifies its checksums.

  Raises UserError if there is no raw set or no such split, or a file is missing
  or of another kind or size than the manifest says.
  """
  root = pathlib.Path(path).expanduser()
  manifest = read_manifest(root)
  if split not in manifest['splits']:
    found = sorted(manifest['splits'])
    raise UserError(f'the raw set {root} has the splits {found}, not {split!r}')
  info, size = manifest['splits'][split], manifest['image_size']
  square = size, size, manifest['channels']
  files.keep_open(root / entry['file'] for entry in info['shards'])
  shards = [
    _load_array(root, entry, (entry['num_examples'], *square), np.uint8)
    for entry in info['shards']
  ]
  labels = _load_array(root, info['labels'], (sum(map(len, shards)),), np.int32)
  names = tuple(manifest['class_names'])
  if not len(labels) or labels.min() < 0 or labels.max() >= len(names):
    problem = f'no labels, or others than 0 to {len(names) - 1}'
    raise _unfit(root / info['labels']['file'], problem)
  if split == 'train':
    splits.check_labels(root, labels, names)
  rgb = [info['rgb']['mean'], *info['rgb']['covariance']]
  if [*map(len, rgb)] != [3] * 4 or not (np.abs(rgb) < 1e6).all():
    raise _unfit(root / MANIFEST, f'the mean colors of {split} are {rgb!r:.80}')
  hashes = [entry['sha256'] for entry in [*info['shards'], info['labels']]]
  starts = [
    shard.__array_interface__['data'][0]
    + np.arange(len(shard)) * math.prod(square)
    for shard in shards
  ]
  return RawSource(
    name=f'{root} {split}',
    class_names=names,
    fingerprint=splits.digest(json.dumps([names, hashes, rgb]).encode()),
    square_size=size,
    channels=square[2],
    rgb_mean=np.array(rgb[0], float),
    rgb_covariance=np.array(rgb[1:], float),
    labels=np.array(labels),
    shards=shards,
    ends=np.cumsum([len(shard) for shard in shards]),
    starts=np.concatenate(starts).astype(np.uint64),
  )


@contextlib.contextmanager
def new_array(
  path: pathlib.Path, dtype: str, shape: Sequence[int]
) -> Iterator[Callable[[np.ndarray], object]]:
  """Gives a function that appends arrays [n, *shape] to a new .npy file."""
  count = 0

  def write_header():
    # numpy leaves room for a larger first dimension.
    header = {'descr': dtype, 'fortran_order': False, 'shape': (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()

  def append(array):
    nonlocal count
    count += len(array)
    file.write(np.ascontiguousarray(array).data)

  with path.open('wb') as file:
    start = write_header()
    yield append
    file.seek(0)
    if write_header() != start:
      raise RuntimeError('the length of a .npy header changed')


def is_raw_set(root: pathlib.Path) -> bool:
  """Returns True if a folder has shards and a manifest.json, damaged or not."""
  has_shards = any(root.glob('*-labels.npy')) or any(root.glob('*-of-*.npy'))
  return has_shards and (root / MANIFEST).exists()


def read_manifest(root: pathlib.Path) -> dict:
  """Reads the manifest of a raw set; raises UserError without one that fits."""
  try:
    manifest = files.read_json(root / MANIFEST, _SHAPE)
  except FileNotFoundError as error:
    raise UserError(
      f'no raw set in {root}: it has no {MANIFEST}. `python -m'
      ' alexnet_jax.data.prepare raw` makes one, or goes on'
    ) from error
  if manifest['format'] != FORMAT:
    raise UserError(f'{root / MANIFEST} is no manifest of {FORMAT!r}')
  # Older sets do not have it.
  if manifest.setdefault('channels', 3) not in (1, 3):
    problem = f'channels is {manifest["channels"]!r:.80}, not 1 or 3'
    raise _unfit(root / MANIFEST, problem)
  seen = set()
  for split, info in manifest['splits'].items():
    for entry in [info['labels'], *info['shards']]:
      name = entry['file']
      if os.path.basename(name) != name or name in seen:
        problem = f'{split} has {name!r}: no plain name, or one given twice'
        raise _unfit(root / MANIFEST, problem)
      seen.add(name)
  return manifest


def _load_array(root, entry, shape, dtype):
  path = root / entry['file']
  try:
    array = np.lib.format.open_memmap(path, mode='r')
  except Exception as error:  # numpy evaluates the header as Python's literals
    raise _unfit(path, error) from error
  if array.shape != shape or array.dtype != dtype:
    problem = f'{array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}'
    raise _unfit(path, problem)
  if not array.flags.c_contiguous:  # `addresses` counts on it
    raise _unfit(path, 'the array is in the order of Fortran, not of C')
  return np.asarray(array)  # slices of a plain array are cheaper


def _unfit(path, problem):
  return UserError(
    f'{path} is missing or damaged ({problem}); prepare the set again'
  )
