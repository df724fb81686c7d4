"""Files of data sets: images in folders named by class, lists, and shards."""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import errno
import logging
import os
import pathlib
import re
import stat
from typing import NamedTuple

import numpy as np
import PIL.Image

from alexnet_jax import files
from alexnet_jax.data import decoding, splits
from alexnet_jax.data.images import as_rgb
from alexnet_jax.errors import listed, UnreadableImageError, UserError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.gif', '.webp', '.bmp')
IMAGE_SUFFIXES += ('.tif', '.tiff')
_OTHER_IMAGES = ('.avif', '.heic', '.heif', '.jfif', '.jp2', '.jpe', '.jxl')
_OTHER_IMAGES += ('.dng', '.ico', '.pgm', '.ppm', '.psd', '.svg', '.tga')
_COMPRESSED = ('.gz', '.tgz', '.bz2', '.xz', '.zst', '.lz4')
# What some of the files are that are left out.
OTHER_FILES, BESIDE = 'other files', 'folders beside the splits'
_COMPRESSED_FILES = 'compressed files'
# The last component of a path tells the number of the file, and of how many.
_NUMBERED = re.compile(r'((?:.*\D)?)(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.[^/]*')
# What was listed for training, until validation takes its part: a listing of
# millions of files takes minutes on a network's disk.
_listed: dict = {}


class Listing(NamedTuple):
  """The files below a folder, in the order of their paths' components."""

  paths: list[str]
  sizes: list[int]  # bytes
  left_out: list[tuple[str, str]]  # (path, what it is)
  folders: list[str]  # paths


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FolderSource(splits.Source):
  """Image files under `root`, one subfolder per class.

  `paths` are relative to `root`, `labels` int32 [n], `sizes` bytes.
  """

  root: pathlib.Path
  paths: np.ndarray  # objects [n]
  labels: np.ndarray
  sizes: np.ndarray
  class_names: Sequence[str]
  left_out: Sequence[tuple[str, str]]  # (path, what it is) of what is not read
  per_example = ('paths', 'labels', 'sizes')

  @property
  def name(self) -> str:
    return str(self.root)

  @property
  def fingerprint(self) -> str:
    lines = (f'{p}\0{s}\n' for p, s in zip(self.paths, self.sizes, strict=True))
    return splits.digest(''.join(lines).encode(errors='surrogateescape'))

  def read(self, index: int) -> tuple[bytes, int]:
    path = os.path.join(self.root, self.paths[index])
    try:
      content = files.read_file(path, self.sizes[index])
    except OSError as error:
      raise UnreadableImageError(error.strerror) from error
    if len(content) != self.sizes[index]:
      raise splits.changed(path)
    return content, int(self.labels[index])

  def file_name(self, index: int) -> str:
    return self.paths[index]

  def describe(self, index: int) -> str:
    return str(self.root / self.paths[index])

  def keys(self) -> Sequence[str]:
    return self.paths


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageList(splits.Source):
  """Images of unknown classes, with 0 as their labels.

  Each is the path of a file, the bytes of one, a PIL image, or an array: uint8
  [height, width, 3] in RGB, or [height, width] or [height, width, 1] in gray.
  """

  images: Sequence
  class_names: Sequence[str]
  name = 'the images'

  @property
  def num_examples(self) -> int:
    return len(self.images)

  def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
    image = self.images[index]
    if isinstance(image, bytes):
      return image, 0
    if isinstance(image, PIL.Image.Image):
      try:  # it may be read only now
        pixels = decoding.image_pixels(image)
      except (OSError, ValueError) as error:
        raise UnreadableImageError(str(error)) from error
      return self._pixels(index, pixels), 0
    if isinstance(image, np.ndarray):
      return self._pixels(index, image), 0
    if not isinstance(image, str | os.PathLike):
      raise UserError(
        f'image {index} is a {type(image).__name__}; give paths, bytes, images'
      )
    path = pathlib.Path(image)
    try:
      if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UnreadableImageError('it is no plain file')
      return path.read_bytes(), 0
    except OSError as error:
      raise UnreadableImageError(error.strerror) from error

  def _pixels(self, index, array):
    fits = array.dtype == np.uint8 and array.shape[2:] in ((), (1,), (3,))
    if fits and array.ndim > 1 and array.size:
      color = array[..., None] if array.ndim == 2 else array
      return np.ascontiguousarray(as_rgb(color))
    raise UserError(
      f'image {index} is {array.dtype} {list(array.shape)}, not uint8 [h, w, 3]'
    )

  def describe(self, index: int) -> str:
    image = self.images[index]
    is_path = isinstance(image, str | os.PathLike)
    return os.fspath(image) if is_path else f'image {index}'


def list_files(
  folder: str | os.PathLike, endings: tuple[str, ...] = IMAGE_SUFFIXES
) -> Listing:
  """Lists the files below a folder whose names have one of some endings.

  Links are followed, but for those to a folder around them; what is hidden is
  passed over. Raises OSError if a folder cannot be listed.
  """
  waiting, found, left_out, visited = [os.fspath(folder)], [], [], []
  while waiting:
    parent = waiting.pop()
    path = pathlib.Path(parent)
    if path.is_symlink() and any(map(path.samefile, path.absolute().parents)):
      left_out.append((parent, 'links to a folder around them'))
      continue
    visited.append(parent)
    folders, names = _visible(parent)
    below = os.path.join(parent, '')
    waiting += [below + name for name in folders]
    for name in names:
      path = below + name
      size, kind = _size_and_kind(path, endings)
      if kind:
        left_out.append((path, kind))
      else:
        found.append((path, size))
  if len(visited) > 1:
    # By component, as if files and folders had been sorted together.
    found.sort(key=_components)
    left_out.sort(key=_components)
  paths, sizes = [path for path, _ in found], [size for _, size in found]
  return Listing(paths, sizes, left_out, visited)


def _components(entry):
  return entry[0].replace(os.sep, '\0')


def _visible(folder):
  """Returns the sorted names of (folders, others) in a folder, none hidden."""
  folders, others = [], []
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name[0] == '.':
        continue
      try:
        found = folders if entry.is_dir() else others
      except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself
          raise
        found = others
      found.append(entry.name)
  return sorted(folders), sorted(others)


def _size_and_kind(path, endings):
  """Returns (bytes, ''), or (0, what it is) of a file that is left out."""
  name = path.lower()
  if not name.endswith(endings):
    if name.endswith(_COMPRESSED):
      return 0, _COMPRESSED_FILES
    other = name.endswith(_OTHER_IMAGES)
    return 0, 'images of a kind that is not read' if other else OTHER_FILES
  try:
    status = os.stat(path)
  except OSError as error:
    if error.errno not in (errno.ENOENT, errno.ELOOP):
      raise
    return 0, 'links to nowhere'
  if not stat.S_ISREG(status.st_mode):
    return 0, 'no plain files'
  return status.st_size, ''


def data_folder(path: str, content: str) -> pathlib.Path:
  """Returns the folder of a data set; UserError if there is none."""
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise UserError(
      f'no folder at {str(root)!r}; give --config.data.path=DIR with {content}'
    )
  return root


def open_shards(
  path: str, ending: str, side: splits.Side, open_files: Callable
) -> splits.Source:
  """Opens one side of a set whose examples lie in shards.

  `sort_into_splits` tells the splits apart. `open_files` is given the folder,
  paths of files below it, and the training source if they are for validation.

  Raises UserError if no file has the `ending`, some are compressed or missing
  (of those numbered I-of-N), or none is for training, or one is there twice.
  """
  root = data_folder(path, f'the files of the data set (*{ending})')
  listing = list_files(root, (ending,))
  _check_uncompressed(listing, ending)
  warn_left_out(root, [e for e in listing.left_out if e[0].endswith(ending)])
  if not listing.paths:
    raise UserError(f'{root} has no file whose name ends in {ending}')
  found = [os.path.relpath(path, root) for path in listing.paths]
  train, held_out = splits.sort_into_splits(root, found, side.split)
  _check_complete(root, train + held_out)

  def training():
    return open_files(root, train, None)

  def validation():
    return open_files(root, held_out, training())

  own = validation if held_out else None
  return splits.open_side(root, side, training, own)


def _check_uncompressed(listing, ending):
  """Refuses shards that are compressed, unless they are there plain as well."""
  plain = set(listing.paths)
  for path, kind in listing.left_out:
    name = re.sub(r'(?i)\.tgz$', '.tar.gz', path).rpartition('.')[0]
    compressed = kind == _COMPRESSED_FILES and name.lower().endswith(ending)
    if compressed and name not in plain:
      raise UserError(f'{path} is compressed; uncompress it, or remove it')


def _check_complete(root, names):
  """Refuses one file under two names, and shards I-of-N if not each I is once.

  Nor may shards of one start have two N.
  """
  known, numbers = {}, collections.defaultdict(list)
  for name in names:
    other = known.setdefault(os.path.realpath(root / name), name)
    if other != name:
      raise UserError(f'{root}: {other} and {name} are one file; leave one')
    if match := _NUMBERED.fullmatch(name):
      numbers[match[1], int(match[3])].append(int(match[2]))
  for (start, count), found in numbers.items():
    if len(counts := [n for other, n in numbers if other == start]) > 1:
      raise UserError(
        f'{root} has {start}I-of-N with N of {counts}; leave one version'
      )
    first = int(0 not in found)  # some count from 1
    if len(found) != count or {*found} != {*range(first, first + count)}:
      raise UserError(
        f'{root} has {len(found)} files {start}I-of-{count}, not one for each'
        ' I; fetch all of one version, or rename these'
      )


def subfolders(root: str | os.PathLike) -> list[str]:
  """Returns the sorted names of the folders in `root` that are not hidden."""
  return _visible(root)[0]


def _split_folders(root):
  """Returns the folders of the splits, and those that are not read.

  The first are {train, validation: path}, or {all: path} of all images. A
  folder of classes named like a split is that split; `test` serves as
  validation if there is no other. Raises UserError if a split has two folders,
  or folders that are named like splits would be taken for classes.
  """
  names = subfolders(root)
  own = {name: splits.split_of_name(name) for name in names}
  found = {'train': [], 'validation': [], 'test': []}
  for name in filter(own.get, names):
    if own[name] == 'validation' or subfolders(root / name):
      found[own[name]].append(name)
  if not found['train']:
    _check_class_names(root, names, own)
    return {'all': root}, []
  validation = found['validation'] or found['test']
  for split, folders in (('train', found['train']), ('validation', validation)):
    if len(folders) > 1:
      listed = f'{len(folders)} folders for {split} ({", ".join(folders)})'
      raise UserError(f'{root} has {listed}: leave one of them')
  if validation == found['test'] != []:
    splits.warn_once(f'{root}: the test split serves as validation')
  train = root / found['train'][0]
  unused = [root / n for n in names if n not in (train.name, *validation)]
  if unused:
    listed = ', '.join(path.name for path in unused)
    splits.warn_once(f'{root}: folders that are not read: {listed}')
  if not validation:
    return {'all': train}, unused
  other = root / validation[0]
  if train.samefile(other):
    raise UserError(
      f'{train} and {other} are one folder: its images would be in both'
    )
  return {'train': train, 'validation': other}, unused


def _check_class_names(root, names, own):
  if alike := [name for name in names if own[name]]:
    word = alike[0].lower() if len(alike) == 1 < len(names) else ''
    if word in ('train', 'valid') and not subfolders(root / alike[0]):
      return  # the vehicle; the opposite of invalid
  else:
    words = {name: splits.split_words(name) for name in names}
    alike = [name for name in names if len(words[name]) == 1]
    different = len({split for name in alike for split in words[name]})
    if different < 2 or 2 * len(alike) < len(names):
      return  # classes: bullet_train and test_tube
  raise UserError(
    f'{root} has folders named like splits ({", ".join(alike)}); images belong'
    ' into train/CLASS and val/CLASS, or CLASS; rename a class called so'
  )


def _check_classes(
  root: pathlib.Path,
  classes: dict[str, Listing],
  class_names: Sequence[str] | None,
) -> None:
  """Refuses folders of classes that cannot be trained on.

  `class_names` are those of training, for a folder of validation.
  """
  if not classes:
    raise UserError(f'{root} has no subfolders; each class needs one')
  names = list(classes if class_names is None else class_names)
  known = set(map(splits.normal, names))
  lacking = [name for name in classes if splits.normal(name) not in known]
  if lacking:
    raise UserError(
      f'{root} has classes that training lacks:'
      f' {listed(map(repr, lacking))}; remove them'
    )
  if empty := [name for name, listing in classes.items() if not listing.paths]:
    suffixes = ', '.join(IMAGE_SUFFIXES)
    raise UserError(
      f'{root} has classes without images ({suffixes}):'
      f' {listed(map(repr, empty))}; fill or remove them'
    )
  seen = set()
  for name, listing in classes.items():
    path, plain = root / name, splits.normal(name)
    own = listing.folders[:1]  # none of a link to a folder around it
    below = [p for p in listing.folders if [os.path.dirname(p)] == own]
    words = {splits.split_of_name(os.path.basename(p)) for p in below} - {''}
    if len(words) > 1:
      raise UserError(
        f'{path} holds folders named like splits; give the folder that has'
        ' train/ and val/'
      )
    if plain in seen:
      raise UserError(
        f'{path} ({str(path)!a}) has the name of another class, spelled in'
        ' other bytes of Unicode; join them'
      )
    seen.add(plain)
  if class_names is None and len(classes) == 1:
    raise UserError(f'{path} is the only class in {root}; two are needed')


def folder_source(path: str, side: splits.Side) -> FolderSource:
  """Opens photographs in subfolders named by class; see `_split_folders`.

  Raises UserError if the folder is missing, or classes cannot be trained on.
  """
  root = data_folder(path, 'one subfolder of images per class')
  folders, unused = _split_folders(root)
  whole = folders.get('all', folders.get('train'))

  def training():
    source = _listed.pop(whole, None) if side.split == 'validation' else None
    source = source or list_folder(whole, unused=unused)
    if side.split == 'train' and 'all' in folders:
      _listed.clear()
      _listed[whole] = source
    return source

  def validation():
    return list_folder(folders['validation'], subfolders(whole))

  own = validation if 'validation' in folders else None
  return splits.open_side(root, side, training, own)


def list_folder(
  root: pathlib.Path,
  class_names: Sequence[str] | None = None,
  unused: Sequence[pathlib.Path] = (),
) -> FolderSource:
  """Opens all images of a folder whose subfolders are classes.

  The labels are numbers of `class_names`, of training, or of the subfolders.
  The folders `unused` count as left out. Raises UserError if classes cannot be
  trained on.
  """
  classes = {
    name: list_files(os.path.join(root, name)) for name in subfolders(root)
  }
  _check_classes(root, classes, class_names)
  left_out = [
    (str(root / name), 'images beside the classes')
    for name in _visible(root)[1]
    if name.lower().endswith(IMAGE_SUFFIXES)
  ]
  left_out += [entry for c in classes.values() for entry in c.left_out]
  warn_left_out(root, left_out)
  names = list(classes) if class_names is None else class_names
  numbers = {splits.normal(name): number for number, name in enumerate(names)}
  labels = [numbers[splits.normal(name)] for name in classes]
  counts = [len(listing.paths) for listing in classes.values()]
  below = len(str(root)) + 1
  paths = [path[below:] for c in classes.values() for path in c.paths]
  return FolderSource(
    root,
    np.array(paths, object),
    np.repeat(np.array(labels, np.int32), counts),
    np.array([size for c in classes.values() for size in c.sizes], np.int64),
    names,
    [*((str(path), BESIDE) for path in unused), *left_out],
  )


def warn_left_out(root: object, left_out: Sequence[tuple[str, str]]) -> None:
  """Logs how many files of each kind are left out, and names the first."""
  if left_out:
    counts = collections.Counter(what for _, what in left_out)
    listed = ', '.join(f'{count:,} {what}' for what, count in counts.items())
    first = os.path.relpath(left_out[0][0], root)
    splits.warn_once(f'{root}: left out: {listed}; the first: {first}')


def find_images(paths: Sequence[str]) -> list[str]:
  """Returns the image files that `paths` name, in that order.

  A file counts whatever its name, a folder stands for what `list_files` lists.
  Raises UserError if a path does not exist or there is no image at all.
  """
  if missing := [repr(path) for path in paths if not os.path.exists(path)]:
    raise UserError(f'there is no file or folder {", ".join(missing)}')
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
      f' of files that end in {" ".join(IMAGE_SUFFIXES)}'
    )
  return found
