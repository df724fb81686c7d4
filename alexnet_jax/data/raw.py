"""Raw sets: squares of one size, decoded once, in memory-mapped .npy shards.

`prepare raw` writes them. The paper trained on such arrays: 256 x 256 pixels of
every image (Krizhevsky et al. 2012, section 2). A raw set is a folder with

- SPLIT-00000-of-00003.npy ...: uint8 [n, size, size, 3];
- SPLIT-labels.npy: int32, the labels of all of them in order;
- manifest.json: see `prepare.raw`.

Memory-mapped files must stay as they are while they are read: one that is cut
off or fails under a run ends the process with a bus error (what was saved stays
good).
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

import numpy as np

from alexnet_jax.data.shard_files import allow_open_files
from alexnet_jax.data.splits import digest
from alexnet_jax.errors import UserError

MANIFEST = 'manifest.json'
FORMAT = 'alexnet_jax raw 1'


@dataclasses.dataclass(frozen=True, eq=False)
class RawSource:
  """A split of a raw set.

  Attributes:
    square_size: width of the squares, in pixels.
    rgb_mean: of all pixels, float64 [3].
    rgb_covariance: of all pixels, float64 [3, 3].
    labels: int32 [num_examples].
    shards: uint8 [n, square_size, square_size, 3] each, memory-mapped.
    ends: int64 [number of shards], index behind the last example of each.
    bases: uint64 [number of shards], address of each in memory.
  """

  name: str
  class_names: Sequence[str]
  fingerprint: str
  square_size: int
  rgb_mean: np.ndarray
  rgb_covariance: np.ndarray
  labels: np.ndarray
  shards: Sequence[np.ndarray]
  ends: np.ndarray
  bases: np.ndarray

  @property
  def num_examples(self) -> int:
    return len(self.labels)

  def read(self, index: int) -> tuple[np.ndarray, int]:
    number = int(np.searchsorted(self.ends, index, side='right'))
    shard = self.shards[number]
    position = index - int(self.ends[number]) + len(shard)
    return shard[position], int(self.labels[index])

  def describe(self, index: int) -> str:
    return f'{self.name} example {index}'

  def addresses(self, indices: np.ndarray) -> np.ndarray:
    """Returns the addresses of some squares in memory, uint64 [n]."""
    numbers = np.searchsorted(self.ends, indices, side='right')
    sizes = np.diff(self.ends, prepend=0)
    positions = indices - (self.ends - sizes)[numbers]
    stride = self.square_size * self.square_size * 3
    return self.bases[numbers] + positions.astype(np.uint64) * np.uint64(stride)


def raw_source(path: str, split: str) -> RawSource:
  """Opens a split of a raw set; `prepare check` verifies its checksums.

  Raises:
    UserError: if there is no raw set, no such split, or a file is missing or of
      another size than the manifest says.
  """
  root = pathlib.Path(path).expanduser()
  manifest = read_manifest(root)
  if split not in manifest['splits']:
    raise UserError(
      f'the raw set {root} has the splits {sorted(manifest["splits"])}, not'
      f' {split!r}'
    )
  info = manifest['splits'][split]
  size = manifest['image_size']
  allow_open_files(len(info['shards']))
  shards = [_open_shard(root, entry, size) for entry in info['shards']]
  labels_path = root / info['labels']['file']
  labels = _load(labels_path)
  num_examples = sum(map(len, shards))
  if labels.shape != (num_examples,) or labels.dtype != np.int32:
    problem = f'{labels.dtype} {labels.shape}, not int32 ({num_examples},)'
    raise _unfit(labels_path, problem)
  largest = len(manifest['class_names']) - 1
  if not num_examples or labels.min() < 0 or labels.max() > largest:
    raise _unfit(labels_path, f'no labels, or others than 0 to {largest}')
  return RawSource(
    name=f'{root} {split}',
    class_names=tuple(manifest['class_names']),
    fingerprint=_fingerprint(manifest, info),
    square_size=size,
    rgb_mean=np.array(info['rgb']['mean']),
    rgb_covariance=np.array(info['rgb']['covariance']),
    labels=labels,
    shards=shards,
    ends=np.cumsum([len(shard) for shard in shards]),
    bases=np.array(
      [s.__array_interface__['data'][0] for s in shards], np.uint64
    ),
  )


def _fingerprint(manifest, info):
  """Returns a hash of the contents, wherever they came from."""
  hashes = [entry['sha256'] for entry in info['shards']]
  contents = [manifest['class_names'], hashes, info['labels']['sha256']]
  return digest(json.dumps(contents).encode())


def read_manifest(root: pathlib.Path) -> dict:
  """Reads the manifest of a raw set.

  Raises:
    UserError: if there is none, or it is of another kind.
  """
  try:
    manifest = json.loads((root / MANIFEST).read_text())
  except FileNotFoundError as error:
    raise UserError(
      f'no raw set in {root}: it has no {MANIFEST}. `python -m'
      ' alexnet_jax.data.prepare raw` makes one; if it was ended before it was'
      ' done, the same command goes on'
    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f'cannot read {root / MANIFEST}: {error}') from error
  keys = {'image_size', 'class_names', 'settings', 'splits'}
  if (
    not isinstance(manifest, dict)
    or manifest.get('format') != FORMAT
    or keys - manifest.keys()
  ):
    raise UserError(
      f'{root / MANIFEST} is no manifest of a raw set ({FORMAT!r})'
    )
  return manifest


def _open_shard(root, entry, size):
  path = root / entry['file']
  shard = _load(path, mmap_mode='r')
  expected = (entry['num_examples'], size, size, 3)
  if shard.shape != expected or shard.dtype != np.uint8:
    raise _unfit(path, f'{shard.dtype} {shard.shape}, not uint8 {expected}')
  return np.asarray(shard)  # slices of a plain array are cheaper


def _load(path, **options):
  try:
    return np.load(path, **options)
  except (OSError, ValueError, EOFError) as error:
    raise _unfit(path, error) from error


def _unfit(path, problem):
  return UserError(
    f'{path} is missing or damaged ({problem}); prepare the set again'
  )
