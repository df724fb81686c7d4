"""Samples in uncompressed tar shards, laid out as WebDataset does."""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import re
import tarfile

import numpy as np

from alexnet_jax import files
from alexnet_jax.data import folder
from alexnet_jax.data import splits
from alexnet_jax.errors import UserError

_COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst', '.tar.lz4')
_IMAGES = frozenset(suffix[1:] for suffix in folder.IMAGE_SUFFIXES)
_LABELS = ('cls', 'json')  # the first is taken where a sample has both
_CLASS_FILES = ('classes.txt', 'classnames.txt')
_BLOCK = 512  # bytes; a tar consists of such blocks and ends with one of zeros
_ENCODING = ('utf-8', 'surrogateescape')  # of names in a tar: any bytes
_THREADS = 16  # they wait for the disk more than they compute
_LONG_TO_INDEX = 1 << 33  # bytes; indexing them is announced
_LARGE = 10_000  # samples; their index is kept in a file
_INDEX_VERSION = 1
_FIELDS = ('shard', 'offset', 'size', 'label', 'key')
_FORMATS = ('<i4', '<i8', '<i8', '<i4')  # and bytes


@dataclasses.dataclass(frozen=True, eq=False)
class TarSource:
  """Samples of tar files below `root`.

  `shards` are paths relative to `root`, `shard_sizes` their bytes, `samples` a
  structured array [n] of the _FIELDS: number of the shard, offset and size of
  the image in bytes, label, and key in UTF-8.
  """

  root: pathlib.Path
  split: str
  shards: Sequence[str]
  shard_sizes: Sequence[int]
  samples: np.ndarray
  class_names: Sequence[str]

  @property
  def name(self) -> str:
    return f'{self.root} {self.split}'

  @property
  def num_examples(self) -> int:
    return len(self.samples)

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
      content = files.read_at(path, _BLOCK + size, offset - _BLOCK)
      shard_size = os.stat(path).st_size
    except OSError as error:
      raise UserError(f'cannot read {path}: {error.strerror}') from error
    if len(content) != _BLOCK + size or shard_size != self.shard_sizes[shard]:
      raise UserError(
        f'{path} had {self.shard_sizes[shard]} bytes at the start and has'
        f' {shard_size} now; start again once the data stays as it is'
      )
    if not _header_has(content[:_BLOCK], size):
      raise UserError(
        f'{self.root / self.split}.index.npz does not fit the shards: delete it'
      )
    return content[_BLOCK:], label

  def describe(self, index: int) -> str:
    sample = self.samples[index]
    shard = self.root / self.shards[sample['shard']]
    return f'{shard} sample {sample["key"].decode(errors="replace")}'


def _header_has(header, size):
  try:
    return tarfile.nti(header[124:136]) == size
  except tarfile.HeaderError:  # no number, so no header of a tar
    return False


def tar_source(
  path: str, split: str, val_fraction: float = 0.2, split_seed: int = 0
) -> TarSource:
  """Opens a split of a folder of tar shards.

  A sample is the files of a shard that share the path up to the first dot of
  its last component: an image, and its label as text in `.cls` or under `label`
  (or `cls`) in `.json`. `classes.txt` or `classnames.txt` names the classes.
  `sort_into_splits` tells the splits apart; without validation shards,
  `held_out` splits those of training. The shards are read once to find the
  samples; the index of a large set is kept in `path`.

  Raises:
    UserError: if shards are missing, compressed, truncated or damaged, or hold
      samples without an image or without a label that training knows.
  """
  root = pathlib.Path(path).expanduser()
  found = folder.find_data_files(root, ('.tar', *_COMPRESSED))
  names = splits.sort_into_splits(root, _uncompressed(root, found), split)
  shards = names['train']
  samples = train = _indexed(root, 'train', *_state(root, shards))
  class_names = splits.check_labels(
    root, train['label'], _read_class_names(root)
  )
  if names['validation']:
    splits.warn_of_own_split(root, val_fraction, split_seed)
  if names['validation'] and split != 'train':
    shards = names['validation']
    samples = _indexed(root, 'validation', *_state(root, shards))
    splits.check_validation_labels(root, train['label'], samples['label'])
  elif not names['validation']:
    keys = [
      f'{shards[number]}/{key.decode(errors="replace")}'
      for number, key in zip(train['shard'], train['key'], strict=True)
    ]
    mask = splits.held_out(
      keys, train['label'], val_fraction, split_seed, class_names
    )
    samples = train[mask == (split == 'validation')]
  _, sizes, _ = _state(root, shards)
  return TarSource(root, split, shards, sizes, samples, class_names)


def _state(root, shards):
  """Returns the names, sizes and times of shards, which an index belongs to."""
  stats = [(root / shard).stat() for shard in shards]
  times = tuple(status.st_mtime_ns for status in stats)
  return tuple(shards), tuple(status.st_size for status in stats), times


def _uncompressed(root, paths):
  """Returns the plain shards; refuses those that are compressed only."""
  for path in paths:
    ending = next((e for e in _COMPRESSED if path.endswith(e)), None)
    if ending and f'{path.removesuffix(ending)}.tar' not in paths:
      raise UserError(
        f'{root / path} is compressed, which no sample can be read from alone;'
        ' uncompress the shards once (for .tar.gz: gunzip *.tar.gz)'
      )
  return [path for path in paths if not path.endswith(_COMPRESSED)]


def _read_class_names(root):
  """Returns the lines of classes.txt or classnames.txt; None without either."""
  path = next((root / n for n in _CLASS_FILES if (root / n).is_file()), None)
  if path is None:
    return None
  try:
    lines = path.read_text('utf-8-sig').rstrip().splitlines()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no UTF-8 text: {error}') from error
  names = [line.strip() for line in lines]
  if '' in names:
    raise UserError(
      f'{path} has an empty line {names.index("") + 1}; it takes one class name'
      ' a line, the first that of label 0'
    )
  return names


@functools.lru_cache(4)  # for the other split, and for folds
def _indexed(root, split, shards, sizes, times):
  """Returns the samples of some shards, from the kept index if it holds."""
  state = json.dumps([_INDEX_VERSION, shards, sizes, times])
  path = root / f'{split}.index.npz'
  if (samples := _load_index(path, state, sizes)) is not None:
    return samples
  if sum(sizes) >= _LONG_TO_INDEX:
    splits.warn_once(f'{root}: indexing {len(shards)} {split} shards')
  samples = _index_shards(root, shards)
  if len(samples) >= _LARGE:
    try:
      with files.replaced_file(path) as temporary, temporary.open('wb') as file:
        np.savez(file, state=state, samples=samples)
    except OSError as error:
      splits.warn_once(
        f'{path} cannot be written ({error.strerror}): every start finds the'
        f' {len(samples)} samples of the shards anew'
      )
  return samples


def _load_index(path, state, sizes):
  """Returns the kept samples; None if there are none that fit the shards."""
  try:
    with open(path, 'rb') as file, np.load(file) as stored:
      samples = stored['samples'] if str(stored['state']) == state else None
    if samples is None or samples.ndim != 1:
      return None
    if samples.dtype != _dtype(samples.dtype['key'].itemsize):
      return None
    shard, offset, size, label, _ = (samples[field] for field in _FIELDS)
    ends = np.array(sizes)[shard]  # IndexError beyond the last one
    whole = (offset % _BLOCK == 0) & (offset >= _BLOCK) & (size >= 0)
    fits = whole & (size <= ends - offset) & (label >= 0) & (shard >= 0)
    return samples if fits.all() else None
  except Exception:  # whatever another file or a damaged one makes of it
    return None


def _index_shards(root, shards):
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    roots, numbers = [root] * len(shards), range(len(shards))
    indexed = list(pool.map(_index_shard, roots, shards, numbers))
  samples = np.concatenate([samples for samples, _ in indexed])
  if ignored := [name for _, names in indexed for name in names]:
    splits.warn_once(
      f'{root}: {len(ignored)} files in the shards that are neither image nor'
      f' label are left out, the first: {ignored[0]}'
    )
  if again := len(samples) - len(np.unique(samples['key'])):
    splits.warn_once(
      f'{root}: {again} samples have a key that another shard has as well'
    )
  return samples


def _index_shard(root, shard, number):
  """Returns (samples, names of files left out) of one tar file."""
  path, samples, ignored = root / shard, {}, []
  try:
    with open(path, 'rb') as file:
      members = _members(path, file)
      for name, offset, size in members:
        stem, _, ending = name.rpartition('/')[2].partition('.')
        ending = ending.lower()
        if not stem or ending not in (*_IMAGES, *_LABELS):
          ignored.append(name)
          continue
        key = name[: len(name) - len(ending) - 1].encode(*_ENCODING)
        parts = samples.setdefault(key, {})
        if ending in parts:
          raise UserError(f'{path} has the file {name!r} twice')
        parts[ending] = offset, size
      rows = [
        (number, *_image_and_label(path, file, key, parts), key)
        for key, parts in samples.items()
      ]
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  if not rows:
    raise UserError(
      f'{path} has no samples (KEY.jpg with KEY.cls), but {len(members)} other'
      f' files{f", the first: {members[0][0]}" if members else ""}'
    )
  return np.array(rows, _dtype(max(len(row[-1]) for row in rows))), ignored


def _dtype(key_bytes):
  formats = [*_FORMATS, f'S{key_bytes}']
  return np.dtype({'names': _FIELDS, 'formats': formats})


def _members(path, file):
  """Returns (name, offset, size) of the files in a tar; it must be whole."""
  found = []
  names = dict(zip(('encoding', 'errors'), _ENCODING, strict=True))
  try:
    with tarfile.open(fileobj=file, mode='r:', **names) as tar:
      while (member := tar.next()) is not None:
        tar.members.clear()  # else it would keep every one of them
        if member.issparse():
          raise tarfile.ReadError(f'{member.name!r} is a sparse file')
        if member.islnk() or member.issym():
          raise tarfile.ReadError(f'{member.name!r} is a link, not a file')
        if member.isreg():
          found.append((member.name, member.offset_data, member.size))
      # What tarfile takes for the end may be a truncated or damaged header.
      rest = os.pread(file.fileno(), 1 << 16, tar.offset)
      if len(rest) < _BLOCK or any(rest[:_BLOCK]):
        raise tarfile.ReadError(f'no end of the tar at byte {tar.offset}')
  except tarfile.TarError as error:
    raise UserError(
      f'{path} is truncated, damaged or no plain uncompressed tar ({error});'
      ' write or fetch it again'
    ) from error
  if any(rest):
    raise UserError(
      f'{path} goes on behind its end, as joined tars do: keep them apart'
    )
  return found


def _image_and_label(path, file, key, parts):
  """Returns (offset of the image, its size, label) of a sample."""
  sample = f'{path} sample {key.decode(errors="replace")}'
  images = [where for ending, where in parts.items() if ending in _IMAGES]
  ending = next((ending for ending in _LABELS if ending in parts), None)
  if len(images) != 1 or ending is None:
    raise UserError(
      f'{sample} has {sorted(parts)}, not an image and a label (.cls or .json)'
    )
  offset, size = parts[ending]
  text = os.pread(file.fileno(), size, offset).decode(errors='replace').strip()
  if ending == 'json':
    try:
      fields = json.loads(text)
      text = str(fields['label'] if 'label' in fields else fields['cls'])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      raise UserError(
        f"{sample} has a .json without a 'label' or 'cls': {error!r}"
      ) from error
  if not re.fullmatch('[0-9]{1,9}', text):
    raise UserError(
      f'{sample}: label {text[:80]!r} is no whole number from 0'
      f'{splits.UNLABELED if text == "-1" else ""}'
    )
  return *images[0], int(text)
