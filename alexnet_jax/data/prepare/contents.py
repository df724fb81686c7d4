"""Reads folders, ImageNet's tars, TFDS and raw sets for `prepare check`."""

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
import PIL.Image

from alexnet_jax.data import decoding
from alexnet_jax.data import folder as folder_lib
from alexnet_jax.data import raw
from alexnet_jax.data import tfds_records
from alexnet_jax.data.folder import is_image_name
from alexnet_jax.data.folder import list_files
from alexnet_jax.data.folder import subfolders
from alexnet_jax.data.prepare.tfds import TRAIN_TAR
from alexnet_jax.data.prepare.tfds import VALIDATION_TAR
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError

TARS = {TRAIN_TAR: 'train', VALIDATION_TAR: 'validation'}
_IMAGENET_IMAGES = {'train': 1_281_167, 'validation': 50_000}
_IMAGENET_CLASSES = 1_000
_BLOCK = 512  # bytes, of a tar
_DIGEST_BYTES = 16  # two of 1.3 million differ with probability 1 - 1e-26
_ORIENTATION = 0x0112  # the EXIF tag
_SMALL = 32  # pixels
_PNG_DEPTH_AT = 24  # offset of the bits per channel in a PNG


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
  class_names = subfolders(next(iter(splits.values())))
  listed = [
    (split, folder / name, list_files(folder / name))
    for split, folder in splits.items()
    for name in subfolders(folder) or ['']
  ]
  total = sum(is_image_name(path) for *_, paths in listed for path in paths)
  jobs = _folder_jobs(root, splits, class_names, listed)
  return Contents('folder', class_names, total, jobs)


def _folder_jobs(root, splits, class_names, listed):
  for kind, path, *detail in _layout_findings(root, splits, class_names):
    yield _finding(kind, _below(root, path), *detail)
  for split, folder, paths in listed:
    known = folder.name in class_names
    label = class_names.index(folder.name) if known else None
    count = 0
    for path in paths:
      name = _below(root, path)
      if not is_image_name(path):
        if _is_image(path):
          yield _finding('unknown_suffix', name)
        else:
          yield _finding('note', name, 'other files: left out')
      elif folder_lib.file_size(path) is None:
        yield _finding('note', name, 'links to nowhere: left out')
      else:
        count += 1
        yield functools.partial(_examine_path, path, name, split, label)
    if not count and folder != splits[split]:
      yield _finding('empty_class', _below(root, folder))


def _layout_findings(root, splits, class_names):
  """Yields (kind, path) or (kind, path, detail)."""
  for folder in splits.values():
    classes = subfolders(folder)
    if not classes:
      yield 'no_classes', folder
      continue
    for name in sorted(os.listdir(folder)):
      if is_image_name(name) and name[0] != '.':
        yield 'loose_image', folder / name
    for name in classes:
      below = set(subfolders(folder / name))
      if {'train', *folder_lib.VALIDATION_FOLDERS} & below:
        yield 'splits_in_a_class', folder / name
  if len(class_names) == 1:
    yield 'one_class', root / class_names[0]
  if 'validation' in splits:
    found = set(subfolders(splits['validation']))
    for name in sorted(found - set(class_names)):
      yield 'class_only_in_validation', root / name
    for name in sorted(set(class_names) - found):
      yield 'class_not_in_validation', root / name
  if root not in splits.values():
    used = {folder.name for folder in splits.values()}
    for name in sorted(set(subfolders(root)) - used):
      yield 'note', root / name, 'folders beside train and val: not read'


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
  if image.mode in ('1', 'L', 'LA', 'La'):
    yield 'gray: read as RGB'
  if image.mode in ('P', 'PA'):
    yield 'with a palette: read as RGB'
  if image.mode == 'CMYK':
    yield 'CMYK or YCCK: read as RGB'
  if image.mode[-1] in 'Aa' or 'transparency' in image.info:
    yield 'transparent: only the colors are read'
  if image.mode.startswith('I') or (
    image.format == 'PNG' and encoded[_PNG_DEPTH_AT] == 16
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
  import tensorflow_datasets as tfds  # slow to import, and only needed here

  try:
    info = tfds.builder_from_directory(folder).info
    class_names = list(info.features['label'].names)
    file_format = info.file_format.value
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
  total = info.splits.total_num_examples
  return Contents('tfds', class_names, total, _tfds_jobs(info, class_names))


def _tfds_jobs(info, class_names):
  for split, split_info in info.splits.items():
    for path, length in zip(
      split_info.filepaths, split_info.shard_lengths, strict=True
    ):
      if not os.path.isfile(path):
        yield _finding('missing_file', path.name)
        continue
      try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
      except (RuntimeError, ValueError) as error:
        yield _finding('damaged_file', path.name, str(error))
        continue
      yield from _count_findings(f'records of {path.name}', count, length)
      if count := min(count, length):
        records = array_record_data_source.ArrayRecordDataSource(
          f'{path}[0:{count}]'
        )
        for i in range(count):
          name = f'{path.name} record {i}'
          yield functools.partial(_examine_record, records, i, name, split)
  if info.name == 'imagenet2012':
    for split, expected in _IMAGENET_IMAGES.items():
      known = info.splits.get(split)
      count = known.num_examples if known else 0
      yield from _count_findings(f'{split} images', count, expected)
    yield from _count_findings('classes', len(class_names), _IMAGENET_CLASSES)


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
  try:
    class_names = list(manifest['class_names'])
    splits = dict(manifest['splits'])
    total = sum(s['num_examples'] for s in splits.values())
    for info in splits.values():
      for entry in [info['labels'], *info['shards']]:
        _ = root / entry['file'], entry['sha256']
      _ = [e['num_examples'] + 0 for e in info['shards']], info['skipped']
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{root / raw.MANIFEST} lacks or misuses {error}; prepare the set again'
    ) from error
  return Contents('raw', class_names, total, _raw_jobs(root, splits))


def _raw_jobs(root, splits):
  for split, info in splits.items():
    for name in info['skipped']:
      yield _finding('note', name, 'left out when the set was written')
    for entry in [info['labels'], *info['shards']]:
      if (root / entry['file']).is_file():
        yield functools.partial(_check_sum, root, entry)
      else:
        yield _finding('missing_file', entry['file'])
    try:
      source = raw.raw_source(str(root), split)
    except UserError as error:
      yield _finding('refused', split, str(error))
      continue
    count = source.num_examples
    what = f'images of {split}'
    yield from _count_findings(what, count, info['num_examples'])
    for i in range(count):
      yield functools.partial(_examine_square, source, i, split)


def _check_sum(root, entry):
  name = entry['file']
  try:
    with (root / name).open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    return Outcome(name, [('damaged_file', error.strerror)])
  return Outcome(name, [('checksum', '')] if found != entry['sha256'] else [])


def _examine_square(source, index, split):
  square, label = source.read(index)
  name = f'{split} example {index}'
  return Outcome(name, [], split, label, digest(square.data))
