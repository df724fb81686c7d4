"""What `prepare check` looks at in prepared sets: TFDS's and raw ones.

They have what `files` describes.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import hashlib
import pathlib

import numpy as np

from alexnet_jax.data import pixel_statistics
from alexnet_jax.data import raw
from alexnet_jax.data import tfds_records
from alexnet_jax.data.prepare import duplicates
from alexnet_jax.data.prepare.contents import examine_file
from alexnet_jax.data.prepare.contents import IMAGENET_CLASSES
from alexnet_jax.data.prepare.contents import IMAGENET_IMAGES
from alexnet_jax.data.prepare.diagnosis import Outcome
from alexnet_jax.data.prepare.findings import Findings
from alexnet_jax.data.prepare.tallies import report_count
from alexnet_jax.data.prepare.tallies import report_unused_classes
from alexnet_jax.data.prepare.tallies import Tally
from alexnet_jax.errors import UserError


class TfdsContents:
  """A set that TFDS, or `prepare resize`, has written as array_record."""

  kind = 'tfds'

  def __init__(self, folder: pathlib.Path):
    """`folder` holds its dataset_info.json.

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
        count = _count_records(str(path), length, findings)
        records = tfds_records.RecordFiles([(str(path), 0, count)])
        for i in range(count):
          name = f'{path.name} record {i}'
          yield functools.partial(_examine_record, records, i, split, name)

  def finish(self, tallies: dict, findings: Findings) -> None:
    if self._info.name == 'imagenet2012':
      for split, expected in IMAGENET_IMAGES.items():
        known = self._info.splits.get(split)
        count = known.num_examples if known else 0
        report_count(findings, f'{split} images', count, expected)
      count = len(self.class_names)
      report_count(findings, 'classes', count, IMAGENET_CLASSES)
    report_unused_classes(
      findings, self.class_names, tallies.get('train', Tally())
    )


def _count_records(path, expected, findings):
  """How many records of a shard can be read."""
  from array_record.python import array_record_module

  name = pathlib.Path(path).name
  if not pathlib.Path(path).is_file():
    findings.add('missing_file', name)
    return 0
  try:
    reader = array_record_module.ArrayRecordReader(path)
    count = reader.num_records()
    reader.close()
  except (RuntimeError, ValueError) as error:
    findings.add('damaged_file', name, str(error))
    return 0
  report_count(findings, f'records of {name}', count, expected)
  return min(count, expected)


def _examine_record(records, index, split, name):
  try:
    example = tfds_records.example_class().FromString(records.read(index))
    features = example.features.feature
    encoded = features['image'].bytes_list.value[0]
    label = features['label'].int64_list.value[0]
  except Exception as error:  # of protobuf's parser, ArrayRecord or an index
    return Outcome(split, name, found=[('unreadable', str(error))])
  if file_names := features['file_name'].bytes_list.value:
    name += ' ' + file_names[0].decode(errors='replace')
  hidden = split == 'test' and label == -1
  outcome = examine_file(encoded, split, name, None if hidden else label)
  if hidden:
    outcome.found.append(('unlabeled', ''))
  return outcome


class RawContents:
  """A raw set; see `data.raw` and `prepare.raw_set`."""

  kind = 'raw'

  def __init__(self, root: pathlib.Path):
    """`root` holds its manifest.json.

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
      self._check_keys()
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(
        f'{root / raw.MANIFEST} lacks or misuses {error}; prepare the set again'
      ) from error
    self._whole = set()  # splits of which every shard can be read

  def jobs(self, findings: Findings) -> Iterator[Callable[[], Outcome]]:
    for split, info in self._splits.items():
      for name in info['skipped']:
        findings.add('skipped', name)
      labels = self._labels(split, findings)
      start = 0
      for entry in [info['labels'], *info['shards']]:
        if (self._root / entry['file']).is_file():
          yield functools.partial(_check_sum, self._root, entry)
      self._whole.add(split)
      for entry in info['shards']:
        shard = self._shard(entry, findings)
        if shard is None:
          self._whole.discard(split)
        else:
          own = labels[start:]
          yield from _square_jobs(shard, own, split, entry['file'])
        start += entry['num_examples']

  def finish(self, tallies: dict, findings: Findings) -> None:
    for split, info in self._splits.items():
      in_shards = sum(e['num_examples'] for e in info['shards'])
      what = f'{split} images of all shards'
      report_count(findings, what, in_shards, info['num_examples'])
      if split in self._whole:
        self._check_colors(split, tallies.get(split, Tally()), findings)
    tally = tallies.get('train', Tally())
    report_unused_classes(findings, self.class_names, tally)

  def _check_keys(self):
    for info in self._splits.values():
      for entry in [info['labels'], *info['shards']]:
        _ = self._root / entry['file'], entry['sha256']
      _ = [e['num_examples'] + 0 for e in info['shards']], info['skipped']

  def _labels(self, split, findings):
    """The labels of a split, -1 for those that are missing."""
    info = self._splits[split]
    name, count = info['labels']['file'], info['num_examples']
    labels = self._load(name, findings)
    if labels is None:
      return []
    if labels.ndim != 1 or labels.dtype != np.int32:
      said = f'it is {labels.dtype} {labels.shape}'
      findings.add('damaged_file', name, said)
      return []
    report_count(findings, f'labels in {name}', len(labels), count)
    return labels

  def _shard(self, entry, findings):
    """uint8 [n, size, size, 3], memory-mapped; None if it cannot be read."""
    name = entry['file']
    shard = self._load(name, findings, mmap_mode='r')
    if shard is None:
      return None
    if (
      shard.shape[1:] != (self._size, self._size, 3) or shard.dtype != np.uint8
    ):
      said = f'it is {shard.dtype} {shard.shape}'
      findings.add('damaged_file', name, said)
      return None
    what = f'images in {name}'
    report_count(findings, what, len(shard), entry['num_examples'])
    return np.asarray(shard)

  def _load(self, name, findings, **options):
    try:
      return np.load(self._root / name, **options)
    except FileNotFoundError:
      findings.add('missing_file', name)
    except (OSError, ValueError, EOFError) as error:
      findings.add('damaged_file', name, str(error))
    return None

  def _check_colors(self, split, tally, findings):
    pixels = tally.examples * self._size**2
    if not pixels:
      return
    written = self._splits[split].get('rgb') or {}
    found = pixel_statistics.color_statistics(
      pixels, tally.sums, tally.products
    )
    for key, value in found.items():
      said = written.get(key)
      if said != value and not (
        key in ('mean', 'covariance') and _nearly_equal(said, value)
      ):
        findings.add('wrong_sums', f'{split} {key}', f'{said}, not {value}')


def _nearly_equal(said, value):
  try:
    return np.allclose(np.array(said, float), value, rtol=1e-9, atol=1e-9)
  except (TypeError, ValueError):  # no numbers, or of another shape
    return False


def _check_sum(root, entry):
  try:
    with (root / entry['file']).open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    said = [('damaged_file', error.strerror)]
    return Outcome(None, entry['file'], found=said)
  wrong = found != entry['sha256']
  return Outcome(None, entry['file'], found=[('checksum', '')] if wrong else [])


def _square_jobs(shard, labels, split, file_name):
  for i, square in enumerate(shard):
    label = int(labels[i]) if i < len(labels) else None
    name = f'{file_name} image {i}'
    yield functools.partial(_examine_square, square, split, name, label)


def _examine_square(square, split, name, label):
  from alexnet_jax.data import kernels  # slow to import

  sums = np.zeros(3, np.int64), np.zeros((3, 3), np.int64)
  kernels.add_color_sums(square, *sums)
  return Outcome(
    split, name, label, digest=duplicates.digest(square.data), colors=sums
  )
