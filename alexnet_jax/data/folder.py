"""Image files: folders with one subfolder per class, and lists of files."""

from collections.abc import Sequence
import dataclasses
import logging
import os
import pathlib
import stat

import numpy as np

from alexnet_jax.data.splits import digest
from alexnet_jax.data.splits import held_out
from alexnet_jax.errors import UnreadableImageError
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
  """Image files under `root`, one subfolder per class.

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
    """Returns the path below the folder."""
    return self.paths[index]

  def describe(self, index: int) -> str:
    return str(self.root / self.paths[index])


@dataclasses.dataclass(frozen=True, eq=False)
class FileList:
  """Image files of unknown classes: their labels are 0.

  It is a source (see `sources.Source`) without a fingerprint, as nothing is
  trained on it.
  """

  paths: Sequence[str]
  class_names: Sequence[str]

  @property
  def name(self) -> str:
    return f'{len(self.paths)} files'

  @property
  def num_examples(self) -> int:
    return len(self.paths)

  def read(self, index: int) -> tuple[bytes, int]:
    path = pathlib.Path(self.paths[index])
    try:
      if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UnreadableImageError('it is no plain file')
      return path.read_bytes(), 0
    except OSError as error:
      raise UnreadableImageError(error.strerror) from error

  def describe(self, index: int) -> str:
    return self.paths[index]


def list_files(folder: str | os.PathLike) -> list[str]:
  """Returns the paths of all files below a folder, component by component.

  Hidden files and folders are left out, and links to folders are not followed.
  Links to files are listed, even those that lead nowhere.

  Raises:
    OSError: if a folder cannot be listed.
  """

  def fail(error):
    raise error

  found = []
  for path, folders, names in os.walk(folder, onerror=fail):
    folders[:] = [name for name in folders if name[0] != '.']
    found += [os.path.join(path, name) for name in names if name[0] != '.']
  return sorted(found, key=lambda path: path.split(os.sep))


def subfolders(root: str | os.PathLike) -> list[str]:
  """Returns the sorted names of the folders in `root` that are not hidden."""
  return sorted(
    e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != '.'
  )


def is_image_name(path: str) -> bool:
  """Returns True if a file's name ends as that of an image."""
  return path.lower().endswith(IMAGE_SUFFIXES)


def split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folders of `train` and `validation`, or of `all` images.

  `root/train` and `root/val` (or `validation`, `valid`) are the splits where
  both exist; otherwise `root/train` is all, if that has subfolders, or `root`.
  """
  train = root / 'train'
  validation = next(
    (root / n for n in VALIDATION_FOLDERS if (root / n).is_dir()), None
  )
  if train.is_dir() and validation:
    return {'train': train, 'validation': validation}
  if train.is_dir() and subfolders(train):
    return {'all': train}
  return {'all': root}


def folder_source(
  path: str, split: str, val_fraction: float = 0.2, split_seed: int = 0
) -> FolderSource:
  """Opens photographs in subfolders named by class.

  See `split_folders` for the splits; `held_out` divides a single folder.

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
  folders = split_folders(root)
  if 'train' in folders:
    if split == 'train':
      return list_folder(folders['train'])
    class_names = subfolders(folders['train'])
    return list_folder(folders['validation'], class_names)
  source = list_folder(folders['all'])
  mask = held_out(source.paths, source.labels, val_fraction, split_seed)
  keep = np.flatnonzero(mask if split == 'validation' else ~mask)
  return dataclasses.replace(
    source,
    paths=[source.paths[i] for i in keep],
    labels=source.labels[keep],
    sizes=[source.sizes[i] for i in keep],
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
  names = found if class_names is None else class_names
  if unknown := sorted(set(found) - set(names)):
    raise UserError(f'{root} has classes that training lacks: {unknown}')
  paths, labels, sizes, ignored = [], [], [], []
  for name in found:
    before, label, folder = len(paths), names.index(name), str(root / name)
    for path in list_files(folder):
      relative = name + path[len(folder) :].replace(os.sep, '/')
      size = file_size(path) if is_image_name(path) else None
      if size is None:
        ignored.append(relative)
        continue
      paths.append(relative)
      labels.append(label)
      sizes.append(size)
    if len(paths) == before:
      raise UserError(
        f'{root / name} has no images ({", ".join(IMAGE_SUFFIXES)});'
        ' fill it or remove it'
      )
  if ignored:
    logging.warning(
      '%s: %d files that are no images are left out, the first: %s',
      root,
      len(ignored),
      ignored[0],
    )
  return FolderSource(root, paths, np.array(labels, np.int32), sizes, names)


def file_size(path: str) -> int | None:
  """Returns the size of a file in bytes; None for anything but a file."""
  try:
    status = os.stat(path)
  except FileNotFoundError:
    return None
  return status.st_size if stat.S_ISREG(status.st_mode) else None


def find_images(paths: Sequence[str]) -> list[str]:
  """Returns the image files that `paths` name, in that order.

  A file counts whatever its name. A folder stands for all files below it whose
  suffix is one of images; see `list_files`.

  Raises:
    UserError: if a path does not exist, or if there is no image at all.
    OSError: if a folder cannot be listed.
  """
  if missing := [path for path in paths if not os.path.exists(path)]:
    raise UserError(
      f'there is no file or folder {", ".join(map(repr, missing))}'
    )
  found = []
  for path in paths:
    images = [path]
    if os.path.isdir(path):
      images = [
        p for p in list_files(path) if is_image_name(p) and os.path.isfile(p)
      ]
    if not images:
      logging.warning('%s: no images (%s)', path, ' '.join(IMAGE_SUFFIXES))
    found += images
  if not found:
    raise UserError(
      f'no image in {", ".join(map(repr, paths))}; name image files, or folders'
      f' with files that end in {", ".join(IMAGE_SUFFIXES)}'
    )
  return found


def read_at(path: str, size: int, offset: int = 0) -> bytes:
  """Reads up to `size` bytes of a file from `offset` on, fewer at its end.

  It makes as few system calls as possible: each hands over the GIL.

  Raises:
    UserError: if the file cannot be read.
  """
  try:
    file = os.open(path, os.O_RDONLY)
    try:
      content = os.pread(file, size, offset)
      while 0 < len(content) < size:  # at the end, or a slow file system
        more = os.pread(file, size - len(content), offset + len(content))
        if not more:
          break
        content += more
    finally:
      os.close(file)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  return content
