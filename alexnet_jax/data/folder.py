"""Image files: folders with one subfolder per class, and lists of files."""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
from typing import NamedTuple

import numpy as np

from alexnet_jax import files
from alexnet_jax.data.splits import digest
from alexnet_jax.data.splits import held_out
from alexnet_jax.data.splits import normal
from alexnet_jax.data.splits import split_of_name
from alexnet_jax.data.splits import split_words
from alexnet_jax.data.splits import warn_of_own_split
from alexnet_jax.data.splits import warn_once
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
_OTHER_IMAGES = ('.avif', '.heic', '.heif', '.jfif', '.jp2', '.jpe', '.jxl')
_OTHER_IMAGES += ('.dng', '.ico', '.pgm', '.ppm', '.psd', '.svg', '.tga')
# What was listed for training, until validation takes its part: a listing of
# millions of files takes minutes on a network's disk.
_listed: dict = {}


class Listing(NamedTuple):
  """The files below a folder, in the order of their paths' components."""

  paths: list[str]
  sizes: list[int]  # bytes
  left_out: list[tuple[str, str]]  # (path, what it is)
  folders: list[str]  # paths


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
    try:
      content = files.read_at(path, self.sizes[index] + 1)
    except OSError as error:
      raise UnreadableImageError(error.strerror) from error
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


def list_files(
  folder: str | os.PathLike, endings: tuple[str, ...] = IMAGE_SUFFIXES
) -> Listing:
  """Lists the files below a folder whose names have one of some endings.

  Links are followed, but for those to a folder around them. Hidden files and
  folders are passed over without a word.

  Raises:
    UserError: if a folder cannot be listed.
  """
  found = Listing([], [], [], [])
  around = pathlib.Path(folder).absolute().parents
  above = frozenset(map(_identity, around))
  try:
    _list_below(os.fspath(folder), endings, above, found)
  except RecursionError as error:
    raise UserError(f'{folder} holds folders in folders, too deep') from error
  return found


def _list_below(folder, endings, above, found):
  with _named_errors(folder):
    own = _identity(folder)
    if own in above:
      found.left_out.append((folder, 'links to a folder around them'))
      return
    found.folders.append(folder)
    for entry in _visible(folder):
      if _is(entry.is_dir):
        _list_below(entry.path, endings, above | {own}, found)
      elif not entry.name.lower().endswith(endings):
        other = entry.name.lower().endswith(_OTHER_IMAGES)
        what = 'images of a kind that is not read' if other else 'other files'
        found.left_out.append((entry.path, what))
      elif _is(entry.is_file):
        found.paths.append(entry.path)
        found.sizes.append(entry.stat().st_size)
      else:
        what = 'links to nowhere' if entry.is_symlink() else 'no plain files'
        found.left_out.append((entry.path, what))


def _identity(folder):
  status = os.stat(folder)
  return status.st_dev, status.st_ino


def _visible(folder):
  with os.scandir(folder) as entries:
    visible = [entry for entry in entries if entry.name[0] != '.']
  return sorted(visible, key=lambda entry: entry.name)


def _is(kind):
  """Calls is_dir() or is_file() of an entry: False for links to nowhere."""
  try:
    return kind()
  except OSError as error:
    if error.errno == errno.ELOOP:  # a link to itself
      return False
    raise


@contextlib.contextmanager
def _named_errors(folder):
  try:
    yield
  except OSError as error:
    raise UserError(
      f'cannot list {error.filename or folder}: {error.strerror}; mend its'
      ' permissions, or take it out of the data set'
    ) from error


def find_data_files(root: pathlib.Path, endings: tuple[str, ...]) -> list[str]:
  """Returns the paths, below `root`, of the files of a sharded data set.

  Raises:
    UserError: if there is no folder, it cannot be listed, or there are none.
  """
  if not root.is_dir():
    raise UserError(
      f'no folder at {str(root)!r}; give --config.data.path=DIR with the files'
      f' of the data set (*{endings[0]})'
    )
  listing = list_files(root, endings)
  broken = [(p, w) for p, w in listing.left_out if p.endswith(endings)]
  warn_left_out(root, broken)
  if not listing.paths:
    raise UserError(f'{root} has no file whose name ends in {endings[0]}')
  return [pathlib.Path(p).relative_to(root).as_posix() for p in listing.paths]


def subfolders(root: str | os.PathLike) -> list[str]:
  """Returns the sorted names of the folders in `root` that are not hidden.

  Raises:
    UserError: if it cannot be listed.
  """
  with _named_errors(root):
    return [entry.name for entry in _visible(root) if _is(entry.is_dir)]


def is_image_name(path: str) -> bool:
  """Returns True if a file's name ends as that of an image."""
  return path.lower().endswith(IMAGE_SUFFIXES)


def split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folders of `train` and `validation`, or of `all` images.

  A folder of classes that is named like a split (see `splits.split_of_name`) is
  that split; `test` serves as validation if there is no other. Without any,
  `root` itself has the classes, and without one for validation that of
  training has all images.

  Raises:
    UserError: if a split has two folders, or folders that are named like splits
      would be taken for classes.
  """
  names = subfolders(root)
  own = {name: split_of_name(name) for name in names}
  found = {'train': [], 'validation': [], 'test': []}
  for name in filter(own.get, names):
    if own[name] == 'validation' or subfolders(root / name):
      found[own[name]].append(name)
  if not found['train']:
    _check_class_names(root, names, own)
    return {'all': root}
  validation = found['validation'] or found['test']
  for split, folders in (('train', found['train']), ('validation', validation)):
    if len(folders) > 1:
      raise UserError(
        f'{root} has {len(folders)} folders for {split}'
        f' ({", ".join(folders)}): leave one of them'
      )
  if validation == found['test'] != []:
    warn_once(f'{root}: the test split serves as validation')
  train = root / found['train'][0]
  if unused := [n for n in names if n not in (train.name, *validation)]:
    warn_once(f'{root}: folders that are not read: {", ".join(unused)}')
  if not validation:
    return {'all': train}
  held_out = root / validation[0]
  if train.samefile(held_out):
    raise UserError(
      f'{train} and {held_out} are one folder: what is trained on would be'
      ' measured'
    )
  return {'train': train, 'validation': held_out}


def _check_class_names(root, names, own):
  """Refuses folders that are named like splits as classes."""
  alike = [name for name in names if own[name]]
  word = alike[0].lower() if len(alike) == 1 < len(names) else ''
  if word in ('train', 'valid') and not subfolders(root / alike[0]):
    return  # the vehicle; the opposite of invalid
  if not alike:
    alike = [name for name in names if len(split_words(name)) == 1]
    if len({split for name in alike for split in split_words(name)}) < 2:
      return
    if 2 * len(alike) < len(names):  # classes: bullet_train and test_tube
      return
  if alike:
    raise UserError(
      f'{root} has folders that are named like splits, not like classes'
      f' ({", ".join(alike)}); images belong into train/CLASS and val/CLASS, or'
      ' into CLASS alone; rename a class that is called so'
    )


def list_classes(root: pathlib.Path) -> dict[str, Listing]:
  """Returns the listing of each class folder in `root`, by the class's name."""
  return {name: list_files(root / name) for name in subfolders(root)}


def find_problems(
  root: pathlib.Path,
  classes: dict[str, Listing],
  class_names: Sequence[str] | None = None,
  divided: bool = False,
) -> Iterator[tuple[str, pathlib.Path, str]]:
  """Yields all that training refuses in a folder of classes.

  Args:
    root: the folder.
    classes: see `list_classes`.
    class_names: of training, for a folder of validation.
    divided: whether a part of each class is held out.

  Yields:
    (kind of finding as `prepare check` calls it, what has it, message).
  """
  if not classes:
    message = 'has no subfolders; images belong into one subfolder per class'
    yield 'no_classes', root, f'{root} {message}'
  known = set(map(normal, classes if class_names is None else class_names))
  lacking = [name for name in classes if normal(name) not in known]
  seen = set()
  for name, listing in classes.items():
    path, plain, count = root / name, normal(name), len(listing.paths)
    below = [p for p in listing.folders if os.path.dirname(p) == str(path)]
    if len({split_of_name(os.path.basename(p)) for p in below} - {''}) > 1:
      message = 'holds folders named like splits; give the folder that has'
      yield 'splits_in_a_class', path, f'{path} {message} train/ and val/'
    if not count:
      message = (
        f'has no images ({", ".join(IMAGE_SUFFIXES)}); fill it or remove'
      )
      yield 'empty_class', path, f'{path} {message} it'
    if divided and count == 1:
      message = 'has a single image, which cannot be both trained on and held'
      fix = 'out; add images or remove the class'
      yield 'single_image', path, f'{path} {message} {fix}'
    if plain not in known:
      message = f'{root} has classes that training lacks: {lacking}'
      yield 'class_only_in_validation', path, message
    if plain in seen:
      message = f'{path!a}: another class has this name, spelled in other bytes'
      yield 'spelled_twice', path, f'{message} of Unicode; join them'
    seen.add(plain)
  if class_names is None and len(classes) == 1:
    message = f'has one class only ({next(iter(classes))!r}); two are needed'
    yield 'one_class', root / next(iter(classes)), f'{root} {message} at least'


def folder_source(
  path: str, split: str, val_fraction: float = 0.2, split_seed: int = 0
) -> FolderSource:
  """Opens photographs in subfolders named by class.

  See `split_folders` for the splits; `held_out` divides a single folder.

  Raises:
    UserError: if the folder is missing, or for what `find_problems` finds.
  """
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise UserError(
      f'no folder at {str(root)!r}; give --config.data.path=DIR with one'
      ' subfolder of images per class'
    )
  folders = split_folders(root)
  if 'train' in folders:
    warn_of_own_split(root, val_fraction, split_seed)
    if split == 'train':
      return list_folder(folders['train'])
    return list_folder(folders['validation'], subfolders(folders['train']))
  key = folders['all'], val_fraction > 0
  source = _listed.pop(key, None) if split == 'validation' else None
  source = source or list_folder(key[0], divided=key[1])
  if split == 'train':
    _listed.clear()
    _listed[key] = source
  mask = held_out(source.paths, source.labels, val_fraction, split_seed)
  keep = np.flatnonzero(mask == (split == 'validation'))
  return dataclasses.replace(
    source,
    paths=[source.paths[i] for i in keep],
    labels=source.labels[keep],
    sizes=[source.sizes[i] for i in keep],
  )


def list_folder(
  root: pathlib.Path,
  class_names: Sequence[str] | None = None,
  divided: bool = False,
) -> FolderSource:
  """Opens all images of a folder whose subfolders are classes.

  Args:
    root: the folder.
    class_names: of training, which decide the labels; None: the subfolders.
    divided: whether a part of each class is to be held out.

  Raises:
    UserError: for what `find_problems` finds.
  """
  classes = list_classes(root)
  for _, _, message in find_problems(root, classes, class_names, divided):
    raise UserError(message)
  loose = [(p, 'images beside the class folders') for p in loose_images(root)]
  left_out = [pair for c in classes.values() for pair in c.left_out]
  warn_left_out(root, loose + left_out)
  below = len(str(root)) + 1
  counts = [len(listing.paths) for listing in classes.values()]
  names = list(classes) if class_names is None else class_names
  numbers = {normal(name): number for number, name in enumerate(names)}
  labels = [numbers[normal(name)] for name in classes]
  return FolderSource(
    root,
    [path[below:] for found in classes.values() for path in found.paths],
    np.repeat(np.array(labels, np.int32), counts),
    [size for found in classes.values() for size in found.sizes],
    names,
  )


def loose_images(root: pathlib.Path) -> list[str]:
  """Returns the paths of the images that lie beside the class folders."""
  return [e.path for e in _visible(root) if is_image_name(e.name)]


def warn_left_out(root: object, left_out: Sequence[tuple[str, str]]) -> None:
  """Logs how many files of each kind are left out, and names the first."""
  if left_out:
    counts = collections.Counter(what for _, what in left_out)
    listed = ', '.join(f'{count:,} {what}' for what, count in counts.items())
    first = os.path.relpath(left_out[0][0], root)
    warn_once(f'{root}: left out: {listed}; the first: {first}')


def find_images(paths: Sequence[str]) -> list[str]:
  """Returns the image files that `paths` name, in that order.

  A file counts whatever its name. A folder stands for all files below it whose
  suffix is one of images; see `list_files`.

  Raises:
    UserError: if a path does not exist, a folder cannot be listed, or there is
      no image at all.
  """
  if missing := [path for path in paths if not os.path.exists(path)]:
    raise UserError(
      f'there is no file or folder {", ".join(map(repr, missing))}'
    )
  found = []
  for path in paths:
    if not os.path.isdir(path):
      found.append(path)
      continue
    listing = list_files(path)
    warn_left_out(path, listing.left_out)
    if not listing.paths:
      logging.warning('%s: no images (%s)', path, ' '.join(IMAGE_SUFFIXES))
    found += listing.paths
  if not found:
    raise UserError(
      f'no image in {", ".join(map(repr, paths))}; name image files, or folders'
      f' with files that end in {", ".join(IMAGE_SUFFIXES)}'
    )
  return found
