"""Photographs in subfolders named by class."""

from collections.abc import Sequence
import dataclasses
import logging
import os
import pathlib

import numpy as np

from alexnet_jax.data.shard_files import read_at
from alexnet_jax.data.splits import digest
from alexnet_jax.data.splits import held_out
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
VALIDATION_FOLDERS = ('val', 'validation', 'valid')


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
    return digest(''.join(lines).encode(errors='surrogateescape'))

  def read(self, index: int) -> tuple[bytes, int]:
    path = os.path.join(self.root, self.paths[index])
    content = read_at(path, self.sizes[index] + 1)
    if len(content) != self.sizes[index]:
      raise UserError(
        f'{path} had {self.sizes[index]} bytes when the run started, and has'
        ' another size now; start the run again once the data stays as it is'
      )
    return content, int(self.labels[index])

  def file_name(self, index: int) -> str:
    """The path below the folder."""
    return self.paths[index]

  def describe(self, index: int) -> str:
    return str(self.root / self.paths[index])


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
    (root / n for n in VALIDATION_FOLDERS if (root / n).is_dir()), None
  )
  if not (train.is_dir() and subfolders(train)):
    return _split_folder(root, split, val_fraction, split_seed)
  if validation is None:
    return _split_folder(train, split, val_fraction, split_seed)
  source = list_folder(train)
  if split == 'train':
    return source
  return list_folder(validation, source.class_names)


def _split_folder(root, split, val_fraction, split_seed):
  source = list_folder(root)
  mask = held_out(source.paths, source.labels, val_fraction, split_seed)
  keep = np.flatnonzero(mask if split == 'validation' else ~mask)
  return dataclasses.replace(
    source,
    paths=[source.paths[i] for i in keep],
    labels=source.labels[keep],
    sizes=[source.sizes[i] for i in keep],
  )


def subfolders(root: pathlib.Path) -> list[str]:
  """Names of the folders in `root`, sorted, hidden ones left out."""
  return sorted(
    e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != '.'
  )


def list_folder(
  root: pathlib.Path, class_names: Sequence[str] | None = None
) -> FolderSource:
  """Lists a folder whose subfolders are classes.

  Args:
    root: the folder.
    class_names: of training, which decide the labels; None: the subfolders.

  Raises:
    UserError: as `folder_source` does.
  """
  found = subfolders(root)
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
