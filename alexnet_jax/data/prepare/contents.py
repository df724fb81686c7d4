"""Readers of folders, ImageNet's tars, TFDS and raw sets for `check`."""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import tarfile

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np
import PIL.Image

from alexnet_jax.data import decoding
from alexnet_jax.data import folder as folder_lib
from alexnet_jax.data import raw
from alexnet_jax.data import tfds_records
from alexnet_jax.data.folder import is_image_name
from alexnet_jax.data.folder import subfolders
from alexnet_jax.data.prepare.tfds import TRAIN_TAR
from alexnet_jax.data.prepare.tfds import VALIDATION_TAR
from alexnet_jax.data.splits import normal
from alexnet_jax.errors import UnreadableImageError

TARS = {TRAIN_TAR: 'train', VALIDATION_TAR: 'validation'}
_IMAGENET_IMAGES = {'train': 1_281_167, 'validation': 50_000}
_IMAGENET_CLASSES = 1_000
_BLOCK = 512  # bytes, of a tar
_DIGEST_BYTES = 16  # two of 1.3 million differ with probability 1 - 1e-26
_ORIENTATION = 0x0112  # the EXIF tag
_SMALL = 32  # pixels
_SUFFIXES = {  # by the names of formats in Pillow
  'JPEG': ('.jpg', '.jpeg'),
  'MPO': ('.jpg', '.jpeg'),  # JPEGs of phones, with a second picture behind
  'PNG': ('.png',),
  'GIF': ('.gif',),
  'WEBP': ('.webp',),
  'BMP': ('.bmp',),
  'TIFF': ('.tif', '.tiff'),
}
_PNG_DEPTH_AT = 24  # offset of the bits per channel in a PNG
_GRAY, _ALPHA = 'gray: read as RGB', 'transparent: only the colors are read'
_PALETTE, _CMYK = 'with a palette: read as RGB', 'CMYK or YCCK: read as RGB'
_BY_MODE = {  # of Pillow
  '1': (_GRAY,),
  'L': (_GRAY,),
  'LA': (_GRAY, _ALPHA),
  'La': (_GRAY, _ALPHA),
  'P': (_PALETTE,),
  'PA': (_PALETTE, _ALPHA),
  'RGBA': (_ALPHA,),
  'RGBa': (_ALPHA,),
  'CMYK': (_CMYK,),
}


@dataclasses.dataclass
class Outcome:
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


@dataclasses.dataclass
class Contents:
  """A data set that is examined.

  Attributes:
    kind: folder, tars, tfds or raw.
    class_names: in the order of the labels; of tars as they come.
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
  return Contents(
    'folder', class_names, total, _folder_jobs(root, splits, listed)
  )


def _folder_jobs(root, splits, listed):
  class_names = list(next(iter(listed.values())))
  for split, classes in listed.items():
    folder = splits[split]
    known = class_names if split == 'validation' else None
    for kind, path, _ in folder_lib.find_problems(
      folder, classes, known, divided=split == 'all'
    ):
      yield _finding(kind, _below(root, path))
    for path in folder_lib.loose_images(folder) if classes else ():
      yield _finding('loose_image', _below(root, path))
    found = set(map(normal, classes))
    for name in known or ():
      if normal(name) not in found:
        yield _finding('class_not_in_validation', name)
  if root not in splits.values():
    used = {folder.name for folder in splits.values()}
    for name in sorted(set(subfolders(root)) - used):
      what = 'folders beside train and val: not read'
      yield _finding('note', name, what)
  for split, classes in listed.items():
    flat = {} if classes else {'': folder_lib.list_files(splits[split])}
    for name, listing in (classes or flat).items():
      label = class_names.index(name) if name in class_names else None
      for path, what in listing.left_out:
        below = _below(root, path)
        if what == 'other files' and _is_image(path):
          yield _finding('unknown_suffix', below)
        else:
          yield _finding('note', below, f'{what}: left out')
      for path in listing.paths:
        yield functools.partial(
          _examine_path, path, _below(root, path), split, label
        )


def _below(root, path):
  name = os.path.relpath(path, root)
  return str(root) if name == os.curdir else name


def _is_image(path):
  """Returns True if a file begins as an image does, whatever its name."""
  try:
    with PIL.Image.open(path):
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
    with PIL.Image.open(io.BytesIO(encoded)) as image:
      if min(image.size) == 1:
        found.append(('one_pixel', '{} x {} pixels'.format(*image.size)))
      return found + [('note', note) for note in _notes(image, encoded, name)]
  except Exception:  # Pillow may stumble where the other decoder did not
    return found


def _notes(image, encoded, name):
  """Yields what is unusual about an image that training copes with."""
  yield from _BY_MODE.get(image.mode, ())
  if 'transparency' in image.info:
    yield _ALPHA
  if image.mode.startswith('I') or (
    image.format == 'PNG' and encoded[_PNG_DEPTH_AT] == 16
  ):
    yield 'of 16 bits per channel: cut to 8'
  suffix = os.path.splitext(name)[1].lower()
  if suffix not in _SUFFIXES.get(image.format, ()) and is_image_name(suffix):
    yield f'named {suffix} but {image.format}: read as what they are'
  if 1 < min(image.size) < _SMALL:
    yield f'with a side under {_SMALL} pixels: enlarged'
  # The second picture of an MPO is a preview, no frame.
  if image.format != 'MPO' and getattr(image, 'is_animated', False):
    yield 'with several frames: the first is read'
  if _orientation(image) in range(2, 9):
    yield 'turned by EXIF: read upright'


def _orientation(image):
  try:
    return image.getexif().get(_ORIENTATION, 1)
  except Exception:  # whatever broken EXIF data makes Pillow raise
    return 1


def open_tars(root: pathlib.Path) -> Contents:
  """Opens ImageNet's tars: of a tar per synset, and of validation images.

  They are read from front to back, in one thread, and never unpacked.
  """
  class_names = []
  # A part of ImageNet has fewer images: they take two blocks at least.
  total = sum(
    min(_IMAGENET_IMAGES[split], (root / name).stat().st_size // (2 * _BLOCK))
    for name, split in TARS.items()
    if (root / name).is_file()
  )
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
  described = tfds_records.read_description(folder)
  counts = {
    split: sum(file.take for file in whole)
    for split, whole in described.splits.items()
  }
  jobs = _tfds_jobs(described, counts)
  return Contents('tfds', described.class_names, sum(counts.values()), jobs)


def _tfds_jobs(described, counts):
  for split, whole in described.splits.items():
    for file in whole:
      path = pathlib.Path(file.filename)
      if not path.is_file():
        yield _finding('missing_file', path.name)
        continue
      try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
      except (RuntimeError, ValueError) as error:
        yield _finding('damaged_file', path.name, str(error))
        continue
      yield from _count_findings(f'records of {path.name}', count, file.take)
      if count := min(count, file.take):
        records = array_record_data_source.ArrayRecordDataSource(
          f'{path}[0:{count}]'
        )
        for i in range(count):
          name = f'{path.name} record {i}'
          yield functools.partial(_examine_record, records, i, name, split)
  if described.name == 'imagenet2012':
    for split, expected in _IMAGENET_IMAGES.items():
      count = counts.get(split, 0)
      yield from _count_findings(f'{split} images', count, expected)
    yield from _count_findings(
      'classes', len(described.class_names), _IMAGENET_CLASSES
    )


def _examine_record(records, index, name, split):
  try:
    example = tfds_records.example_class().FromString(records[index])
    features = example.features.feature
    encoded = features['image'].bytes_list.value[0]
    label = features['label'].int64_list.value[0]
  except Exception as error:  # of protobuf's parser, ArrayRecord or an index
    return Outcome(name, [('unreadable', str(error))], split)
  if file_names := features['file_name'].bytes_list.value:
    name += ' ' + file_names[0].decode(errors='replace')
  hidden = split == 'test' and label == -1
  outcome = _examine_file(encoded, name, split, None if hidden else label)
  if hidden:
    note = 'test images without a label: do not evaluate on them'
    outcome.found.append(('note', note))
  return outcome


def open_raw(root: pathlib.Path) -> Contents:
  """Opens a raw set; see `data.raw` and `prepare.raw`.

  Raises:
    UserError: if the manifest cannot be understood.
  """
  manifest = raw.read_manifest(root)
  splits, size = manifest['splits'], manifest['image_size']
  total = sum(info['num_examples'] for info in splits.values())
  jobs = _raw_jobs(root, splits, size)
  return Contents('raw', manifest['class_names'], total, jobs)


def _raw_jobs(root, splits, size):
  for split, info in splits.items():
    for name in info['skipped']:
      yield _finding('note', name, 'left out when the set was written')
    for entry in [info['labels'], *info['shards']]:
      yield functools.partial(_check_sum, root, entry)
    labels, found = _load(root, info['labels'], (), np.int32)
    yield from found
    what = f'labels in {info["labels"]["file"]}'
    yield from _count_findings(what, len(labels), info['num_examples'])
    start = 0
    for entry in info['shards']:
      name, expected = entry['file'], entry['num_examples']
      squares, found = _load(root, entry, (size, size, 3), np.uint8)
      yield from found
      if not found:
        what = f'images in {name}'
        yield from _count_findings(what, len(squares), expected)
      for i, square in enumerate(squares):
        label = int(labels[start + i]) if start + i < len(labels) else None
        image_name = f'{name} image {i}'
        yield functools.partial(
          _examine_square, square, image_name, split, label
        )
      start += expected
    what = f'{split} images of all shards'
    yield from _count_findings(what, start, info['num_examples'])


def _load(root, entry, shape, dtype):
  """Returns an array [n, *shape] and findings; if there are any, it is []."""
  name = entry['file']
  try:
    array = np.load(root / name, mmap_mode='r' if shape else None)
  except FileNotFoundError:
    return [], [_finding('missing_file', name)]
  except Exception as error:  # numpy parses the header as Python
    return [], [_finding('damaged_file', name, str(error))]
  if not isinstance(array, np.ndarray):
    return [], [_finding('damaged_file', name, 'it is an archive')]
  if not array.ndim or array.shape[1:] != shape or array.dtype != dtype:
    detail = f'it is {array.dtype} {array.shape}'
    return [], [_finding('damaged_file', name, detail)]
  return np.asarray(array), []


def _check_sum(root, entry):
  name = entry['file']
  try:
    with (root / name).open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except FileNotFoundError:  # found when it is read
    return Outcome(name, [])
  except OSError as error:
    return Outcome(name, [('damaged_file', error.strerror)])
  return Outcome(name, [('checksum', '')] if found != entry['sha256'] else [])


def _examine_square(square, name, split, label):
  return Outcome(name, [], split, label, digest(square.data))
