"""Samples in uncompressed tar shards, laid out as WebDataset does."""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import tarfile
import zipfile

import numpy as np

from alexnet_jax import files
from alexnet_jax.data import shard_files
from alexnet_jax.data import splits
from alexnet_jax.data.folder import IMAGE_SUFFIXES
from alexnet_jax.data.folder import read_at
from alexnet_jax.errors import UserError

_COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst', '.tar.lz4')
_IMAGES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
_ENDINGS = frozenset((*_IMAGES, 'cls', 'json'))
_LABELS = ('cls', 'json')  # the first is taken where a sample has both
_BLOCK = 512  # bytes; a tar consists of such blocks and ends with one of zeros
_ENCODING = ('utf-8', 'surrogateescape')  # of names in a tar: any bytes
_THREADS = 16  # they wait for the disk more than they compute
_LONG_TO_INDEX = 1 << 33  # bytes; indexing them is announced
_LARGE = 10_000  # samples; their index is kept in a file
_INDEX_VERSION = 1
_FIELDS = ('shard', 'offset', 'size', 'label', 'key')
# (state, samples) of indices that could not be written at their paths.
_in_memory: dict[pathlib.Path, tuple[str, np.ndarray]] = {}


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
    # Opened anew each time: there may be more shards than open files.
    content = read_at(path, size, offset)
    shard_size = os.stat(path).st_size
    if len(content) != size or shard_size != self.shard_sizes[shard]:
      raise UserError(
        f'{path} had {self.shard_sizes[shard]} bytes at the start and has'
        f' {shard_size} now; start again once the data stays as it is'
      )
    return content, label

  def describe(self, index: int) -> str:
    sample = self.samples[index]
    shard = self.root / self.shards[sample['shard']]
    return f'{shard} sample {sample["key"].decode(errors="replace")}'


def tar_source(
  path: str, split: str, val_fraction: float = 0.2, split_seed: int = 0
) -> TarSource:
  """Opens a split of a folder of tar shards.

  A sample is the files of a shard that share the path up to the first dot of
  its last component: an image, and its label as text in `.cls` or under `label`
  (or `cls`) in `.json`. `classes.txt` or `classnames.txt` names the classes.
  `shard_files.split_files` tells the splits apart; without validation shards,
  `held_out` splits those of training. The shards are read once to find the
  samples; the index of a large set is kept in `path`.

  Raises:
    UserError: if shards are missing, compressed, truncated or damaged, or hold
      samples without an image or without a label that training knows.
  """
  root = pathlib.Path(path).expanduser()
  files = shard_files.split_files(root, ('.tar', *_COMPRESSED), split)
  files = {name: _uncompressed(root, found) for name, found in files.items()}
  shards = files['train']
  samples = train = _indexed(root, 'train', shards)
  names = shard_files.read_class_names(root)
  names = shard_files.named_classes(root, train['label'], names)
  if files['validation'] and split != 'train':
    shards = files['validation']
    samples = _indexed(root, 'validation', shards)
    shard_files.check_validation_labels(root, train['label'], samples['label'])
  elif not files['validation']:
    keys = [
      f'{shards[number]}/{key.decode(errors="replace")}'
      for number, key in zip(train['shard'], train['key'], strict=True)
    ]
    mask = splits.held_out(keys, train['label'], val_fraction, split_seed)
    samples = train[mask if split == 'validation' else ~mask]
  sizes = [(root / shard).stat().st_size for shard in shards]
  return TarSource(root, split, shards, sizes, samples, names)


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


def _indexed(root, split, shards):
  """Returns the samples of some shards, from the kept index if it holds."""
  stats = [(root / shard).stat() for shard in shards]
  sizes, times = zip(*((s.st_size, s.st_mtime_ns) for s in stats), strict=True)
  state = json.dumps([_INDEX_VERSION, shards, sizes, times])
  path = root / f'{split}.index.npz'
  known, samples = _in_memory.get(path) or _load_index(path)
  if known != state:
    if sum(sizes) >= _LONG_TO_INDEX:
      shard_files.warn_once(f'{root}: indexing {len(shards)} {split} shards')
    samples = _index_shards(root, shards)
    if len(samples) >= _LARGE:
      _keep_index(path, state, samples)
  return samples


def _load_index(path):
  """Returns (state of the shards, samples), or Nones if damaged or missing."""
  try:
    with open(path, 'rb') as file, np.load(file) as stored:
      return str(stored['state']), stored['samples']
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
    return None, None


def _keep_index(path, state, samples):
  try:
    with files.replaced_file(path) as temporary, temporary.open('wb') as file:
      np.savez(file, state=state, samples=samples)
  except OSError as error:
    _in_memory[path] = state, samples
    shard_files.warn_once(
      f'{path} cannot be written ({error.strerror}): every start finds the'
      f' {len(samples)} samples of the shards anew'
    )


def _index_shards(root, shards):
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    roots, numbers = [root] * len(shards), range(len(shards))
    indexed = list(pool.map(_index_shard, roots, shards, numbers))
  samples = np.concatenate([samples for samples, _ in indexed])
  if ignored := [name for _, names in indexed for name in names]:
    shard_files.warn_once(
      f'{root}: {len(ignored)} files in the shards that are neither image nor'
      f' label are left out, the first: {ignored[0]}'
    )
  if again := len(samples) - len(np.unique(samples['key'])):
    shard_files.warn_once(
      f'{root}: {again} samples have a key that another shard has as well'
    )
  return samples


def _index_shard(root, shard, number):
  """Returns (samples, names of files left out) of one tar file."""
  path = root / shard
  try:
    with open(path, 'rb') as file:
      members = _members(path, file)
      samples, ignored = _group(path, members)
      rows = [
        (number, *_image_and_label(path, file, key, files), key)
        for key, files in samples.items()
      ]
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  if not rows:
    raise UserError(
      f'{path} has no samples (KEY.jpg with KEY.cls), but {len(members)} other'
      f' files{f", the first: {members[0][0]}" if members else ""}'
    )
  formats = ['<i4', '<i8', '<i8', '<i4', f'S{max(len(r[-1]) for r in rows)}']
  dtype = np.dtype({'names': _FIELDS, 'formats': formats})
  return np.array(rows, dtype), ignored


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


def _group(path, members):
  """Returns ({key: {ending: (offset, size)}}, names of files left out)."""
  samples, ignored = {}, []
  for name, offset, size in members:
    folder, slash, base = name.rpartition('/')
    stem, _, ending = base.partition('.')
    ending = ending.lower()
    if not stem or ending not in _ENDINGS:
      ignored.append(name)
      continue
    key = (folder + slash + stem).encode(*_ENCODING)
    files = samples.setdefault(key, {})
    if ending in files:
      raise UserError(f'{path} has the file {name!r} twice')
    files[ending] = offset, size
  return samples, ignored


def _image_and_label(path, file, key, files):
  """Returns (offset of the image, its size, label) of a sample."""
  sample = f'{path} sample {key.decode(errors="replace")}'
  images = [where for ending, where in files.items() if ending in _IMAGES]
  ending = next((ending for ending in _LABELS if ending in files), None)
  if len(images) != 1 or ending is None:
    raise UserError(
      f'{sample} has {sorted(files)}, not an image and a label (.cls or .json)'
    )
  offset, size = files[ending]
  content = os.pread(file.fileno(), size, offset)
  value = _label_in_json(sample, content) if ending == 'json' else content
  text = value.decode(errors='replace').strip()
  if not re.fullmatch('[0-9]{1,9}', text):
    raise UserError(f'{sample}: label {text[:80]!r} is no whole number from 0')
  return *images[0], int(text)


def _label_in_json(sample, content):
  try:
    fields = json.loads(content)
  except ValueError as error:
    raise UserError(f'{sample} has a .json that is none: {error}') from error
  if not isinstance(fields, dict) or not {'label', 'cls'} & set(fields):
    raise UserError(f"{sample} has neither 'label' nor 'cls' in its .json")
  return str(fields.get('label', fields.get('cls'))).encode()
