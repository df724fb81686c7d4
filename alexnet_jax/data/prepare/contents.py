"""Reads data sets of all kinds for `prepare check`."""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import hashlib
import io
import os
import pathlib
import tarfile
from typing import NamedTuple

from array_record.python import array_record_module
import numpy as np
import PIL.Image

from alexnet_jax.data import decoding
from alexnet_jax.data import folder as folder_lib
from alexnet_jax.data import raw
from alexnet_jax.data import sources
from alexnet_jax.data import tfds_records
from alexnet_jax.data.folder import is_image_name
from alexnet_jax.data.folder import subfolders
from alexnet_jax.data.prepare.tfds import TRAIN_TAR
from alexnet_jax.data.prepare.tfds import VALIDATION_TAR
from alexnet_jax.data.splits import normal
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError

TARS = {TRAIN_TAR: 'train', VALIDATION_TAR: 'validation'}
_IMAGENET_IMAGES = {'train': 1_281_167, 'validation': 50_000}
_IMAGENET_CLASSES = 1_000
_BLOCK = 512  # bytes, of a tar
_DIGEST_BYTES = 16  # two of 1.3 million differ with probability 1 - 1e-26
_SMALL = 32  # pixels
_PNG_DEPTH_AT = 24  # offset of the bits per channel in a PNG
_TIFF_DEPTH = 258  # tag of the bits per channel


class Outcome(NamedTuple):
  """Result of the examination of one image, or of something else.

  Attributes:
    name: of the image, the file or the class.
    found: pairs of a kind of `check.KINDS` and a detail.
    split: of an image; None for what is none.
    label: None if it is not known.
    digest: stands for the content; empty if it could not be read.
  """

  name: str
  found: list[tuple[str, str]]
  split: str | None = None
  label: int | None = None
  digest: bytes = b''


class Contents(NamedTuple):
  """A data set that is examined.

  Attributes:
    kind: folder, tars (of ImageNet), or as `config.data.source` calls it.
    class_names: in the order of the labels; of tars known once they are read.
    total: images to expect, for the progress.
    jobs: functions that examine one image or file each, in any thread.
  """

  kind: str
  class_names: list[str]
  total: int
  jobs: Iterator[Callable[[], Outcome]]


def _finding(kind, name, detail=''):
  return functools.partial(Outcome, name, [(kind, detail)])


def _count_findings(what, count, expected):
  if count != expected:
    yield _finding('wrong_count', f'{what}: {count:,}, not {expected:,}')


def open_folder(root: pathlib.Path) -> Contents:
  """Opens images in subfolders named by class, in whatever state they are."""
  splits = folder_lib.split_folders(root)
  listed = {
    split: folder_lib.list_classes(folder) for split, folder in splits.items()
  }
  class_names = list(next(iter(listed.values())))
  total = sum(len(c.paths) for found in listed.values() for c in found.values())
  jobs = _folder_jobs(root, splits, listed, class_names)
  return Contents('folder', class_names, total, jobs)


def _folder_jobs(root, splits, listed, class_names):
  for split, classes in listed.items():
    known = class_names if split == 'validation' else None
    for kind, path, _ in folder_lib.find_problems(
      splits[split], classes, known, divided=split == 'all'
    ):
      yield _finding(kind, _below(root, path))
    for path in folder_lib.loose_images(splits[split]) if classes else ():
      yield _finding('loose_image', _below(root, path))
    missing = set(map(normal, known or ())) - set(map(normal, classes))
    for name in sorted(missing):
      yield _finding('class_not_in_validation', name)
  if root not in splits.values():
    used = {folder.name for folder in splits.values()}
    for name in sorted(set(subfolders(root)) - used):
      yield _finding('note', name, 'folders beside train and val: not read')
  numbers = {normal(name): i for i, name in enumerate(class_names)}
  for split, classes in listed.items():
    flat = {} if classes else {'': folder_lib.list_files(splits[split])}
    for name, listing in (classes or flat).items():
      for path, what in listing.left_out:
        is_image = what == 'other files' and _is_image(path)
        if is_image or what.startswith('images'):
          yield _finding('unknown_suffix', _below(root, path))
        else:
          yield _finding('note', _below(root, path), f'{what}: left out')
      label = numbers.get(normal(name))
      for path in listing.paths:
        name = _below(root, path)
        yield functools.partial(_examine_path, path, name, split, label)


def _below(root, path):
  name = os.path.relpath(path, root)
  return str(root) if name == os.curdir else name


def _is_image(path):
  """Returns True if a file begins as an image does, whatever its name."""
  try:
    with decoding.open_image(path):
      return True
  except Exception:  # whatever a file that is no image makes Pillow raise
    return False


def _examine_path(path, name, split, label):
  try:
    encoded = pathlib.Path(path).read_bytes()
  except OSError as error:
    return Outcome(name, [('unreadable', error.strerror)], split, label)
  return _examine_file(encoded, name, split, label)


def _examine_file(encoded, name, split, label):
  key = digest(encoded) if encoded else b''
  return Outcome(name, examine(encoded, name), split, label, key)


def digest(content: bytes | memoryview) -> bytes:
  """Returns 16 bytes that stand for the content."""
  return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def examine(encoded: bytes, name: str) -> list[tuple[str, str]]:
  """Decodes an image file as training does, and looks at its kind.

  Args:
    encoded: the file.
    name: its name, whose suffix is compared with what the file is; one that
      belongs to no image is not.

  Returns:
    Pairs of a kind of `check.KINDS` and a detail; of an image that cannot be
    decoded, one that says why.
  """
  if not encoded:
    return [('empty_file', '')]
  found = []
  try:
    # A small size: all data is read, but few pixels are computed.
    decoding.decode(
      encoded,
      min_size=1,
      damaged=lambda message: found.append(('damaged_jpeg', message)),
    )
  except UnreadableImageError as error:
    cut = 'truncated' in str(error).lower()
    return [('truncated' if cut else 'unreadable', str(error))]
  try:
    with decoding.open_image(io.BytesIO(encoded)) as image:
      if min(image.size) == 1:
        found.append(('one_pixel', '{} x {} pixels'.format(*image.size)))
      return found + [('note', note) for note in _notes(image, encoded, name)]
  except Exception:  # Pillow may stumble where the other decoder did not
    return found


def _notes(image, encoded, name):
  """Yields what is unusual about an image that training copes with."""
  if image.mode in ('1', 'L', 'LA', 'La'):
    yield 'gray: read as RGB'
  if image.mode in ('P', 'PA'):
    yield 'with a palette: read as RGB'
  if image.mode == 'CMYK':
    yield 'CMYK or YCCK: read as RGB'
  if image.mode[-1] in 'Aa' or 'transparency' in image.info:
    yield 'transparent: only the colors are read'
  if (
    image.mode.startswith('I')
    or (image.format == 'PNG' and encoded[_PNG_DEPTH_AT] == 16)
    or (image.format == 'TIFF' and max(image.tag_v2.get(_TIFF_DEPTH, (8,))) > 8)
  ):
    yield 'of 16 bits per channel: cut to 8'
  suffix = os.path.splitext(name)[1].lower()
  # JPEGs of phones are MPO: a preview behind the picture, which is no frame.
  form = image.format.replace('MPO', 'JPEG')
  if is_image_name(suffix) and PIL.Image.EXTENSION.get(suffix) != form:
    yield f'named {suffix} but {image.format}: read as what they are'
  if 1 < min(image.size) < _SMALL:
    yield f'with a side under {_SMALL} pixels: enlarged'
  if image.format != 'MPO' and getattr(image, 'is_animated', False):
    yield 'with several frames: the first is read'
  if decoding.orientation(image) > 1:
    yield 'turned by EXIF: read upright'


def open_tars(root: pathlib.Path) -> Contents:
  """Opens ImageNet's tars: of a tar per synset, and of validation images.

  They are read from front to back, in one thread, and never unpacked.
  """
  class_names = []
  total = sum(_IMAGENET_IMAGES.values())
  return Contents('tars', class_names, total, _tars_jobs(root, class_names))


def _tars_jobs(root, class_names):
  for tar_name, split in TARS.items():
    if not (root / tar_name).is_file():
      yield _finding('missing_file', tar_name)
      continue
    count = 0
    with (root / tar_name).open('rb') as file:
      for name, content in _tar_members(file, tar_name):
        if content is None:
          yield _finding('damaged_file', tar_name, name)
        elif split == 'validation':
          count += 1
          yield _tar_image(content, name, split)
        else:
          synset = pathlib.PurePath(name).stem
          class_names.append(synset)
          label = len(class_names) - 1
          for inner_name, inner in _tar_members(content, name):
            if inner is None:
              yield _finding('damaged_file', name, inner_name)
            else:
              count += 1
              yield _tar_image(inner, f'{synset}/{inner_name}', split, label)
    yield from _count_findings(
      f'{split} images', count, _IMAGENET_IMAGES[split]
    )
  if (root / TRAIN_TAR).is_file():
    yield from _count_findings('classes', len(class_names), _IMAGENET_CLASSES)


def _tar_members(file, tar_name):
  """Yields (name, open file) of each file of a tar; (what, None) for damage.

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
      yield 'it has no end mark', None
  except (tarfile.TarError, OSError) as error:
    yield str(error), None


def _tar_image(content, name, split, label=None):
  try:
    encoded = content.read()
  except (tarfile.TarError, OSError) as error:
    found = [('truncated', str(error))]
    return functools.partial(Outcome, name, found, split, label)
  return functools.partial(_examine_file, encoded, name, split, label)


def open_tfds(folder: pathlib.Path) -> Contents:
  """Opens a set that TFDS, or `prepare resize`, wrote as array_record.

  Raises:
    UserError: if its description is damaged or it is of another format.
  """
  described = tfds_records.read_description(folder.resolve())
  total = sum(map(described.num_examples, described.splits))
  return Contents('tfds', described.class_names, total, _tfds_jobs(described))


def _tfds_jobs(described):
  version = described.folder
  for split, whole in described.splits.items():
    for file in whole:
      yield from _record_file_findings(pathlib.Path(file.filename), file.take)
    name, data_dir = version.parent.name, str(version.parent.parent)
    yield from _source_jobs(
      split, tfds_records.tfds_source, name, split, data_dir
    )
  if 'train' not in described.splits:
    splits = sorted(described.splits)
    yield _finding('refused', 'train', f'there is no such split, only {splits}')
  if described.name == 'imagenet2012':
    for split, expected in _IMAGENET_IMAGES.items():
      known = split in described.splits
      count = described.num_examples(split) if known else 0
      yield from _count_findings(f'{split} images', count, expected)
    count = len(described.class_names)
    yield from _count_findings('classes', count, _IMAGENET_CLASSES)


def _record_file_findings(path, expected):
  if not path.is_file():
    yield _finding('missing_file', path.name)
    return
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
  except (RuntimeError, ValueError) as error:
    yield _finding('damaged_file', path.name, str(error))
  else:
    yield from _count_findings(f'records of {path.name}', count, expected)


def open_raw(root: pathlib.Path) -> Contents:
  """Opens a raw set; see `data.raw` and `prepare.raw`.

  Raises:
    UserError: if the manifest cannot be understood.
  """
  manifest = raw.read_manifest(root)
  splits, class_names = manifest['splits'], manifest['class_names']
  total = sum(info['num_examples'] for info in splits.values())
  return Contents('raw', class_names, total, _raw_jobs(root, splits))


def _raw_jobs(root, splits):
  for info in splits.values():
    for name in info['skipped']:
      yield _finding('note', name, 'left out when the set was written')
    for entry in [info['labels'], *info['shards']]:
      yield functools.partial(_check_sum, root / entry['file'], entry['sha256'])
  for split in {**splits, **dict.fromkeys(sources.SPLITS)}:
    yield from _source_jobs(split, raw.raw_source, str(root), split)


def open_shards(kind: str, root: pathlib.Path) -> Contents:
  """Opens tar or parquet shards, as training would."""
  class_names = []
  return Contents(kind, class_names, 0, _shard_jobs(kind, root, class_names))


def _shard_jobs(kind, root, class_names):
  for split in sources.SPLITS:
    open_source = functools.partial(sources.make_source, path=str(root))
    yield from _source_jobs(split, open_source, kind, split, names=class_names)


def _source_jobs(split, open_source, *arguments, names=None):
  """Yields the examination of a split; what training refuses is a finding."""
  try:
    source = open_source(*arguments)
  except UserError as error:
    yield _finding('refused', split, str(error))
    return
  if names is not None:
    names[:] = source.class_names
  for index in range(source.num_examples):
    yield functools.partial(_examine_example, source, index, split)


def _check_sum(path, expected):
  try:
    with path.open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except FileNotFoundError:
    return Outcome(path.name, [('missing_file', '')])
  except (OSError, ValueError) as error:  # the latter of an impossible name
    return Outcome(path.name, [('damaged_file', str(error))])
  return Outcome(path.name, [('checksum', '')] if found != expected else [])


def _examine_example(source, index, split):
  """Examines an image as training reads it."""
  try:
    content, label = source.read(index)
  except UserError as error:
    skipped = isinstance(error, UnreadableImageError)
    found = [('unreadable' if skipped else 'damaged_file', str(error))]
    return Outcome(f'{source.name} {index}', found, split)
  name = source.describe(index)
  if isinstance(content, np.ndarray):
    return Outcome(name, [], split, label, digest(content.data))
  hidden = split == 'test' and label == -1
  outcome = _examine_file(content, name, split, None if hidden else label)
  if hidden:
    note = 'test images without a label: do not evaluate on them'
    outcome.found.append(('note', note))
  return outcome
