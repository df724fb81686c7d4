"""Samples in uncompressed tar shards, laid out as WebDataset does."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import os
import pathlib
import re
import tarfile
from typing import BinaryIO

import numpy as np

from alexnet_jax import files
from alexnet_jax.data import folder, splits
from alexnet_jax.errors import UserError

_IMAGES = frozenset(suffix[1:] for suffix in folder.IMAGE_SUFFIXES)
_LABELS = ('cls', 'json')  # the first is taken where a sample has both
_BLOCK = 512  # bytes; a tar consists of such blocks and ends with one of zeros
ENCODING = {'encoding': 'utf-8', 'errors': 'surrogateescape'}  # of any names
_LONG_TO_INDEX = 8  # GB; indexing them is announced
_LARGE = 10_000  # samples; their index is kept in a file
_INDEX_VERSION = 3
_FIELDS = ('shard', 'offset', 'size', 'label', 'key')


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TarSource(splits.Source):
  """Samples of tar files below `root`.

  `samples` is a structured array [n] of the _FIELDS: number of the shard,
  offset and size of the image in bytes, label, and key in UTF-8.
  """

  name: str
  root: pathlib.Path
  shards: Sequence[str]  # paths below the root
  shard_sizes: Sequence[int]  # bytes
  samples: np.ndarray
  class_names: Sequence[str]
  per_example = ('samples',)

  @property
  def labels(self) -> np.ndarray:
    return self.samples['label']

  @property
  def fingerprint(self) -> str:
    shards = json.dumps([list(self.shards), list(self.shard_sizes)])
    return splits.digest(shards.encode(), self.samples.tobytes())

  def read(self, index: int) -> tuple[bytes, int]:
    shard, offset, size, label, _ = self.samples[index].item()
    path = os.path.join(self.root, self.shards[shard])
    try:
      # Opened anew each time: there may be more shards than open files.
      with open(path, 'rb', buffering=0) as file:
        handle = file.fileno()
        content = files.read_range(handle, size, offset)
        shard_size = os.fstat(handle).st_size
    except OSError as error:
      raise UserError(f'cannot read {path}: {error.strerror}') from error
    if len(content) != size or shard_size != self.shard_sizes[shard]:
      raise splits.changed(path)
    return content, label

  def describe(self, index: int) -> str:
    sample = self.samples[index]
    shard = self.root / self.shards[sample['shard']]
    return f'{shard} sample {_text(sample["key"])}'

  def keys(self) -> list[str]:
    shards, keys = self.samples['shard'], self.samples['key']
    pairs = zip(shards, keys, strict=True)
    return [f'{self.shards[shard]}/{_text(key)}' for shard, key in pairs]


def _text(key):
  return key.decode(errors='replace')


def tar_source(path: str, side: splits.Side) -> TarSource:
  """Opens a split of a folder of tar shards; see `folder.open_shards`.

  A sample is the files of a shard that share the path up to the first dot of
  its last component: an image, and its label as text in `.cls` or under `label`
  (or `cls`) in `.json`. `classes.txt` names the classes.

  Raises UserError if shards are missing, truncated or damaged, or hold samples
  without an image or a label that training knows.
  """

  def open_files(root, names, training):
    shards = tuple(names)
    sizes, samples = open_index(root, shards, _index_shards)
    classes = None if training else _read_class_names(root)
    classes = splits.check_labels(root, samples['label'], classes, training)
    name = f'{root} {side.split}'
    return TarSource(name, root, shards, sizes, samples, classes)

  return folder.open_shards(path, '.tar', side, open_files)


def _read_class_names(root):
  """Returns the lines of classes.txt; None if there is no such file."""
  path = root / 'classes.txt'
  if not path.is_file():
    return None
  try:
    names = path.read_text('utf-8-sig').rstrip().splitlines()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no UTF-8 text: {error}') from error
  names = [name.strip() for name in names]
  if '' in names:
    line = f'an empty line {names.index("") + 1}'
    raise UserError(f'{path} has {line}; it takes one class name a line')
  return names


def open_index(
  root: pathlib.Path,
  shards: tuple[str, ...],
  index_shards: Callable[[pathlib.Path, tuple[str, ...]], np.ndarray],
) -> tuple[tuple[int, ...], np.ndarray]:
  """Returns (bytes of each shard, samples of `index_shards(root, shards)`).

  They are shared, and not to be changed; many are kept in the user's cache.
  """
  stats = [(root / shard).stat() for shard in shards]
  sizes = tuple(status.st_size for status in stats)
  times = tuple(status.st_mtime_ns for status in stats)
  return sizes, _indexed(root.absolute(), shards, sizes, times, index_shards)


@functools.lru_cache(4)  # for the other split, and for folds
def _indexed(root, shards, sizes, times, index_shards):
  """Returns the samples of some shards, from the kept index if there is one."""
  key = [_INDEX_VERSION, index_shards.__name__, str(root), shards, sizes, times]
  name = f'{splits.digest(json.dumps(key).encode())}.npy'
  if (samples := _load_index(name, sizes)) is not None:
    return samples
  if (size := sum(sizes) / 1e9) >= _LONG_TO_INDEX:
    splits.warn_once(f'{root}: indexing {len(shards)} tars, {size:,.0f} GB')
  samples = index_shards(root, shards)
  if len(samples) >= _LARGE:
    try:
      path = _index_path(name)
      path.parent.mkdir(parents=True, exist_ok=True)
      with files.replaced_file(path) as temporary, temporary.open('wb') as file:
        np.save(file, samples)
    except (OSError, RuntimeError) as error:  # the latter without a home
      splits.warn_once(
        f'the index of {root} cannot be kept ({error}); it saves time at starts'
      )
  return samples


def _index_path(name):
  return files.cache_folder() / 'tar_indexes' / name


def _load_index(name, sizes):
  """Returns the kept samples; None if there are none that fit the shards."""
  try:
    samples = np.load(_index_path(name))
    shard, offset, size, label, key = (samples[field] for field in _FIELDS)
    left = np.array(sizes)[shard] - offset  # IndexError beyond the last one
    fits = (shard >= 0) & (offset >= 0) & (size >= 0) & (size <= left)
    alike = samples.dtype == _dtype(key.itemsize) and samples.ndim == 1
    return samples if alike and (fits & (label >= 0)).all() else None
  except Exception:  # whatever another file or a damaged one makes of it
    return None


def _index_shards(root, shards):
  indexed = splits.in_threads(
    lambda pair: _index_shard(root, *pair), enumerate(shards)
  )
  if ignored := [name for _, names in indexed for name in names]:
    text = 'files that are neither image nor label are left out, the first'
    splits.warn_once(f'{root}: {len(ignored)} {text}: {ignored[0]}')
  return np.concatenate([samples for samples, _ in indexed])


def _index_shard(root, number, shard):
  path, samples, ignored = root / shard, {}, []
  with open(path, 'rb') as file:
    for name, offset, size in members(path, file):
      stem, _, ending = name.rpartition('/')[2].partition('.')
      ending = ending.lower()
      if not stem or ending not in (*_IMAGES, *_LABELS):
        ignored.append(name)
        continue
      key = name[: len(name) - len(ending) - 1].encode(**ENCODING)
      parts = samples.setdefault(key, {})
      if ending in parts:
        raise UserError(f'{path} has the file {name!r} twice')
      parts[ending] = offset, size
    rows = [
      (number, *_image_and_label(path, file, key, parts), key)
      for key, parts in samples.items()
    ]
  if not rows:
    others = f'only others: {ignored[:3]}'
    raise UserError(f'{path} has no samples (KEY.jpg with KEY.cls), {others}')
  return sample_array(rows), ignored


def sample_array(rows: Sequence[tuple]) -> np.ndarray:
  """Returns the samples of some rows, at least one; see `TarSource`."""
  return np.array(rows, _dtype(max(len(row[-1]) for row in rows)))


def _dtype(key_bytes):
  formats = ['<i4', '<i8', '<i8', '<i4', f'S{key_bytes}']
  return np.dtype({'names': _FIELDS, 'formats': formats})


def members(
  place: str | os.PathLike, file: BinaryIO, start: int = 0, end: int = 0
) -> list[tuple[str, int, int]]:
  """Returns (name, offset, size) of the files in a tar; it must be whole.

  `place` is what messages call it. It lies in `file` from the byte `start` to
  `end` (0: the end of the file), which offsets are counted in. Raises UserError
  if it is cut off, damaged or compressed, or holds links.
  """
  found, end = [], end or os.fstat(file.fileno()).st_size
  try:
    file.seek(start)
    with tarfile.open(fileobj=file, mode='r:', **ENCODING) as tar:
      while (member := tar.next()) is not None:
        tar.members.clear()  # else it would keep every one of them
        if member.issparse() or member.islnk() or member.issym():
          raise tarfile.ReadError(f'{member.name!r} is a link or sparse file')
        if member.isreg():
          found.append((member.name, member.offset_data, member.size))
      # What tarfile takes for the end may be a truncated or damaged header.
      length = max(0, min(1 << 16, end - tar.offset))
      rest = os.pread(file.fileno(), length, tar.offset)
      if len(rest) < _BLOCK or any(rest[:_BLOCK]):
        raise tarfile.ReadError(f'no end of the tar at byte {tar.offset}')
      if any(rest):
        raise tarfile.ReadError('it goes on behind its end: keep tars apart')
  except tarfile.TarError as error:
    raise UserError(
      f'{place} is truncated, damaged or no plain uncompressed tar ({error})'
    ) from error
  return found


def _image_and_label(path, file, key, parts):
  sample = f'{path} sample {_text(key)}'
  images = [where for ending, where in parts.items() if ending in _IMAGES]
  ending = next((ending for ending in _LABELS if ending in parts), None)
  if len(images) != 1 or ending is None:
    needed = 'an image and a label (.cls or .json)'
    raise UserError(f'{sample} has {sorted(parts)}, not {needed}')
  offset, size = parts[ending]
  text = os.pread(file.fileno(), size, offset).decode(errors='replace').strip()
  if ending == 'json':
    try:
      fields = json.loads(text)
      text = str(fields['label'] if 'label' in fields else fields['cls'])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      problem = f"has a .json without a 'label' or 'cls': {error!r}"
      raise UserError(f'{sample} {problem}') from error
  if not re.fullmatch('[0-9]{1,9}', text):
    raise splits.no_label(sample, text)
  return *images[0], int(text)
