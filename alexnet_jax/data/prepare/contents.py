"""Readers of folders, ImageNet's tars, TFDS and raw sets for `prepare check`.

Each class of contents has

- `kind`, `class_names`, `total`: images to expect, for the progress;
- `jobs(findings)`: functions of no arguments that examine one image each and
  return an Outcome. They may run in any thread; what is found on the way to
  them is added to the findings;
- `finish(tallies, findings)`, called once all have run.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import hashlib
import os
import pathlib
import tarfile

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np

from alexnet_jax.data import folder as folder_lib
from alexnet_jax.data import raw
from alexnet_jax.data import tfds_records
from alexnet_jax.data.folder import is_image_name
from alexnet_jax.data.folder import list_files
from alexnet_jax.data.folder import subfolders
from alexnet_jax.data.prepare import diagnosis
from alexnet_jax.data.prepare.findings import digest
from alexnet_jax.data.prepare.findings import Findings
from alexnet_jax.data.prepare.findings import Outcome
from alexnet_jax.data.prepare.findings import Tally
from alexnet_jax.data.prepare.tfds import TRAIN_TAR
from alexnet_jax.data.prepare.tfds import VALIDATION_TAR
from alexnet_jax.errors import UserError

TARS = {TRAIN_TAR: 'train', VALIDATION_TAR: 'validation'}
_IMAGENET_IMAGES = {'train': 1_281_167, 'validation': 50_000}
_IMAGENET_CLASSES = 1_000
_BLOCK = 512  # bytes, of a tar


def _examine_file(encoded, split, name, label):
  """Returns the Outcome of one encoded image."""
  found = diagnosis.examine(encoded, name)
  key = digest(encoded) if encoded else b''
  return Outcome(split, name, label, found, key)


class FolderContents:
  """Images in subfolders named by class, in whatever state they are."""

  kind = 'folder'

  def __init__(self, root: pathlib.Path):
    self._root = root
    self._splits = folder_lib.split_folders(root)
    self.class_names = subfolders(next(iter(self._splits.values())))
    self._files = {  # (split, class name): paths
      (split, name): list_files(folder)
      for split in self._splits
      for name, folder in self._classes(split)
    }
    self.total = sum(
      is_image_name(path) for paths in self._files.values() for path in paths
    )

  def jobs(self, findings: Findings) -> Iterator[Callable[[], Outcome]]:
    self._report_layout(findings)
    for (split, class_name), paths in self._files.items():
      count = 0
      for path in paths:
        if not is_image_name(path):
          if diagnosis.is_image(path):
            findings.add('unknown_suffix', self._name(path))
          else:
            findings.add('note', self._name(path), 'other files: left out')
        elif folder_lib.file_size(path) is None:
          detail = 'links to nowhere: left out'
          findings.add('note', self._name(path), detail)
        else:
          count += 1
          yield functools.partial(self._examine, path, split, class_name)
      if class_name is not None and not count:
        folder = self._splits[split] / class_name
        findings.add('empty_class', self._name(folder))

  def finish(self, tallies: dict, findings: Findings) -> None:
    del tallies, findings  # nothing says how many there should be

  def _classes(self, split):
    """Returns (class name, folder) pairs; (None, itself) without classes."""
    folder = self._splits[split]
    names = subfolders(folder)
    return [(name, folder / name) for name in names] or [(None, folder)]

  def _examine(self, path, split, class_name):
    known = class_name in self.class_names
    label = self.class_names.index(class_name) if known else None
    name = self._name(path)
    try:
      content = pathlib.Path(path).read_bytes()
    except OSError as error:
      return Outcome(split, name, label, [('unreadable', error.strerror)])
    return _examine_file(content, split, name, label)

  def _report_layout(self, findings):
    for folder in self._splits.values():
      if not subfolders(folder):
        findings.add('no_classes', self._name(folder))
        continue
      for path in sorted(os.listdir(folder)):
        if is_image_name(path) and path[0] != '.':
          findings.add('loose_image', self._name(folder / path))
      for name in subfolders(folder):
        below = set(subfolders(folder / name))
        if {'train', *folder_lib.VALIDATION_FOLDERS} & below:
          findings.add('splits_in_a_class', self._name(folder / name))
    if len(self.class_names) == 1:
      findings.add('one_class', self.class_names[0])
    if 'validation' in self._splits:
      found = subfolders(self._splits['validation'])
      for name in sorted(set(found) - set(self.class_names)):
        findings.add('class_only_in_validation', name)
      for name in sorted(set(self.class_names) - set(found)):
        findings.add('class_not_in_validation', name)
    if self._root not in self._splits.values():
      used = {folder.name for folder in self._splits.values()}
      for name in sorted(set(subfolders(self._root)) - used):
        findings.add('note', name, 'folders beside train and val: not read')

  def _name(self, path):
    name = os.path.relpath(path, self._root)
    return str(self._root) if name == os.curdir else name


class TarContents:
  """ImageNet's two tars: of a tar per synset, and of the validation images.

  They are read from front to back, in one thread, and never unpacked.
  """

  kind = 'tars'

  def __init__(self, root: pathlib.Path):
    self._root = root
    self.class_names = []  # of the synsets as they come
    self._there = [name for name in TARS if (root / name).is_file()]
    self.total = sum(
      # A part of ImageNet has fewer: they take two blocks at least.
      min(
        _IMAGENET_IMAGES[TARS[name]],
        (root / name).stat().st_size // (2 * _BLOCK),
      )
      for name in self._there
    )

  def jobs(self, findings: Findings) -> Iterator[Callable[[], Outcome]]:
    for name, split in TARS.items():
      if name not in self._there:
        findings.add('missing_file', name)
        continue
      with (self._root / name).open('rb') as file:
        if split == 'validation':
          yield from _tar_jobs(file, name, split, None, findings)
          continue
        for synset, inner in _members(file, name, findings):
          self.class_names.append(pathlib.PurePath(synset).stem)
          label = len(self.class_names) - 1
          yield from _tar_jobs(inner, synset, split, label, findings)

  def finish(self, tallies: dict, findings: Findings) -> None:
    for name in self._there:
      split = TARS[name]
      count = tallies[split].examples if split in tallies else 0
      findings.add_count(f'{split} images', count, _IMAGENET_IMAGES[split])
    if TRAIN_TAR in self._there:
      findings.add_count('classes', len(self.class_names), _IMAGENET_CLASSES)


def _tar_jobs(file, tar_name, split, label, findings):
  prefix = '' if label is None else f'{pathlib.PurePath(tar_name).stem}/'
  for name, content in _members(file, tar_name, findings):
    try:
      encoded = content.read()
    except (tarfile.TarError, OSError) as error:
      found = [('truncated', str(error))]
      yield functools.partial(Outcome, split, prefix + name, label, found)
      continue
    yield functools.partial(_examine_file, encoded, split, prefix + name, label)


def _members(file, tar_name, findings):
  """Yields (name, open file) of each file of a tar; damage becomes a finding.

  tarfile takes a tar that is cut off between two files, or goes on with
  garbage, for one that ends there; a whole one ends with a block of zeros.
  """
  try:
    with tarfile.open(fileobj=file, mode='r:') as tar:
      while (member := tar.next()) is not None:
        tar.members.clear()  # it would keep all of them
        if member.isfile():
          yield member.name, tar.extractfile(member)
      file.seek(tar.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
      findings.add('damaged_file', tar_name, 'it has no end mark')
  except (tarfile.TarError, OSError) as error:
    findings.add('damaged_file', tar_name, str(error))


class TfdsContents:
  """A set that TFDS, or `prepare resize`, has written as array_record."""

  kind = 'tfds'

  def __init__(self, folder: pathlib.Path):
    """Opens the set whose description is in `folder`.

    Raises:
      UserError: if its description is damaged or it is of another format.
    """
    import tensorflow_datasets as tfds  # slow to import, and only needed here

    try:
      self._info = tfds.builder_from_directory(folder).info
      self.class_names = list(self._info.features['label'].names)
      file_format = self._info.file_format.value
    except Exception as error:  # the parsers of several formats
      raise UserError(
        f'{folder} has no description of images with labels that can be read:'
        f' {error}; prepare the set again'
      ) from error
    if file_format != 'array_record':
      raise UserError(
        f'{folder} is {file_format}; training reads array_record: prepare the'
        ' set again, into another folder'
      )
    self.total = self._info.splits.total_num_examples

  def jobs(self, findings: Findings) -> Iterator[Callable[[], Outcome]]:
    for split, info in self._info.splits.items():
      shards = zip(info.filepaths, info.shard_lengths, strict=True)
      for path, length in shards:
        if count := _count_records(path, length, findings):
          records = array_record_data_source.ArrayRecordDataSource(
            f'{path}[0:{count}]'
          )
          for i in range(count):
            name = f'{path.name} record {i}'
            yield functools.partial(_examine_record, records, i, split, name)

  def finish(self, tallies: dict, findings: Findings) -> None:
    if self._info.name == 'imagenet2012':
      for split, expected in _IMAGENET_IMAGES.items():
        known = self._info.splits.get(split)
        count = known.num_examples if known else 0
        findings.add_count(f'{split} images', count, expected)
      findings.add_count('classes', len(self.class_names), _IMAGENET_CLASSES)
    tally = tallies.get('train', Tally())
    findings.add_unused_classes(self.class_names, tally)


def _count_records(path, expected, findings):
  """Returns how many records of a shard can be read."""
  if not os.path.isfile(path):
    findings.add('missing_file', path.name)
    return 0
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
  except (RuntimeError, ValueError) as error:
    findings.add('damaged_file', path.name, str(error))
    return 0
  findings.add_count(f'records of {path.name}', count, expected)
  return min(count, expected)


def _examine_record(records, index, split, name):
  try:
    example = tfds_records.example_class().FromString(records[index])
    features = example.features.feature
    encoded = features['image'].bytes_list.value[0]
    label = features['label'].int64_list.value[0]
  except Exception as error:  # of protobuf's parser, ArrayRecord or an index
    return Outcome(split, name, found=[('unreadable', str(error))])
  if file_names := features['file_name'].bytes_list.value:
    name += ' ' + file_names[0].decode(errors='replace')
  hidden = split == 'test' and label == -1
  outcome = _examine_file(encoded, split, name, None if hidden else label)
  if hidden:
    note = 'test images without a label: do not evaluate on them'
    outcome.found.append(('note', note))
  return outcome


class RawContents:
  """A raw set; see `data.raw` and `prepare.raw`."""

  kind = 'raw'

  def __init__(self, root: pathlib.Path):
    """Opens the set whose manifest.json is in `root`.

    Raises:
      UserError: if the manifest cannot be understood.
    """
    self._root = root
    manifest = raw.read_manifest(root)
    try:
      self.class_names = list(manifest['class_names'])
      self._size = int(manifest['image_size'])
      self._splits = dict(manifest['splits'])
      self.total = sum(s['num_examples'] for s in self._splits.values())
      for info in self._splits.values():
        for entry in [info['labels'], *info['shards']]:
          _ = root / entry['file'], entry['sha256']
        _ = [e['num_examples'] + 0 for e in info['shards']], info['skipped']
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(
        f'{root / raw.MANIFEST} lacks or misuses {error}; prepare the set again'
      ) from error

  def jobs(self, findings: Findings) -> Iterator[Callable[[], Outcome]]:
    shape = (self._size, self._size, 3)
    for split, info in self._splits.items():
      for name in info['skipped']:
        findings.add('note', name, 'left out when the set was written')
      entry = {**info['labels'], 'num_examples': info['num_examples']}
      labels = self._load(entry, 'labels', (), np.int32, findings)
      for entry in [info['labels'], *info['shards']]:
        if (self._root / entry['file']).is_file():
          yield functools.partial(_check_sum, self._root, entry)
      start = 0
      for entry in info['shards']:
        squares = self._load(entry, 'images', shape, np.uint8, findings)
        for i, square in enumerate(squares):
          label = int(labels[start + i]) if start + i < len(labels) else None
          name = f'{entry["file"]} image {i}'
          yield functools.partial(_examine_square, square, split, name, label)
        start += entry['num_examples']

  def finish(self, tallies: dict, findings: Findings) -> None:
    for split, info in self._splits.items():
      in_shards = sum(e['num_examples'] for e in info['shards'])
      what = f'{split} images of all shards'
      findings.add_count(what, in_shards, info['num_examples'])
    tally = tallies.get('train', Tally())
    findings.add_unused_classes(self.class_names, tally)

  def _load(self, entry, what, shape, dtype, findings):
    """Returns an array [n, *shape] of n examples; [] if it is damaged."""
    name = entry['file']
    try:
      array = np.load(self._root / name, mmap_mode='r' if shape else None)
    except FileNotFoundError:
      findings.add('missing_file', name)
      return []
    except (OSError, ValueError, EOFError) as error:
      findings.add('damaged_file', name, str(error))
      return []
    if not array.ndim or array.shape[1:] != shape or array.dtype != dtype:
      detail = f'it is {array.dtype} {array.shape}'
      findings.add('damaged_file', name, detail)
      return []
    findings.add_count(f'{what} in {name}', len(array), entry['num_examples'])
    return np.asarray(array)


def _check_sum(root, entry):
  try:
    with (root / entry['file']).open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    damage = [('damaged_file', error.strerror)]
    return Outcome(None, entry['file'], found=damage)
  wrong = found != entry['sha256']
  return Outcome(None, entry['file'], found=[('checksum', '')] if wrong else [])


def _examine_square(square, split, name, label):
  return Outcome(split, name, label, digest=digest(square.data))
