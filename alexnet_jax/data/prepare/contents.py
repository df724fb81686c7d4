"""Reads data sets of all kinds for `prepare check`."""

import collections
from collections.abc import Callable, Iterable, Sequence
import contextlib
import functools
import hashlib
import io
import itertools
import os
import pathlib
from typing import NamedTuple

import numpy as np
import PIL.Image

from alexnet_jax.data import (
  decoding,
  folder as folder_lib,
  imagenet,
  raw,
  sources,
  tfds_records,
)
from alexnet_jax.data.prepare import shards, tfds
from alexnet_jax.data.splits import normal
from alexnet_jax.errors import UnreadableImageError, UserError

_IMAGENET = {
  'train images': 1_281_167,
  'validation images': imagenet.NUM_VALIDATION,
  'classes': 1_000,
}
_TARS = imagenet.TRAIN_TAR, imagenet.VALIDATION_TAR
_DIGEST_BYTES = 16  # two of 1.3 million differ with probability 1 - 1e-26
_SMALL = 32  # pixels
_PNG_DEPTH_AT = 24  # offset of the bits per channel in a PNG
_TIFF_DEPTH = 258  # tag of the bits per channel


class Outcome(NamedTuple):
  """Result of the examination of one image, or of something else."""

  name: str  # of the image, the file or the class
  found: list[tuple[str, str]]  # kinds of findings, see `check`, and details
  split: str | None = None  # of an image; None for what is none
  label: int | None = None  # None if it is not known
  digest: bytes = b''  # stands for the content; empty if it cannot be read


class Contents(NamedTuple):
  """A data set that is examined."""

  kind: str  # as `config.data.source` calls it
  class_names: Sequence[str]  # by label
  total: int  # images to expect, for the progress
  jobs: Iterable[Callable[[], Outcome]]  # of an image or file, in any thread
  keys: dict[str, str]  # of config.data that training needs beside the place
  fits: bool  # False if training would refuse it at once


def open_set(root: pathlib.Path, name: str = '') -> Contents:
  """Opens a data set, in whatever state it is.

  Of several kinds in one folder that counts which has the most bytes and fits
  training, or else the most bytes; `name` is that of a TFDS set. Raises
  UserError if there is none, or several TFDS sets, or a description is damaged.
  """
  if not root.is_dir():
    raise UserError(f'no folder at {str(root)!r}; give that of the data set')
  if name:
    return _open_tfds(tfds_records.tfds_folder(name, str(root)))
  sets = tfds_records.find_sets(root)
  if len(sets) > 1:
    names = ', '.join(str(path.parent.relative_to(root)) for path in sets)
    raise UserError(
      f'{root} has several TFDS sets; choose one with --name: {names}'
    )
  found = _kinds(root, sets)
  if not found:
    # Of a raw set; of `resize`, below the set's name and version.
    places = (f'{depth}{shards.NOTES}' for depth in ('', '*/*/', '*/*/*/'))
    if any(any(root.glob(place)) for place in places):
      raise UserError(
        f'{root} is not finished; the command that prepares it goes on'
      )
    raise UserError(
      f'{str(root)!r} is no data set of a known kind: images in folders, tar or'
      f' parquet shards, a raw set ({raw.MANIFEST}), the data_dir of a TFDS'
      f" set, or the folder of ImageNet's tars ({', '.join(_TARS)})"
    )
  kinds = sorted(found, key=found.get, reverse=True)
  if len(kinds) > 1 and kinds[0] != 'tfds':
    for kind in kinds:
      with contextlib.suppress(UserError):
        if (opened := _open(kind, root)).fits:
          return opened._replace(keys={'source': kind} | opened.keys)
  return _open(kinds[0], root)


def _kinds(root, sets):
  """Returns how many bytes of each kind of data set a folder holds."""
  found = collections.Counter()
  if raw.is_raw_set(root):
    found['raw'] = _bytes(root.glob('*.npy'))
  for folder in sets:
    found['tfds'] = _bytes(folder.glob('*.array_record-*'))
  shards = {'.tar': 'tar', '.parquet': 'parquet'}
  try:
    listing = folder_lib.list_files(root, (*shards, *folder_lib.IMAGE_SUFFIXES))
  except OSError:
    if found:  # which lie elsewhere
      return found
    raise
  for path, size in zip(listing.paths, listing.sizes, strict=True):
    kind = shards.get(os.path.splitext(path)[1].lower(), 'folder')
    is_tar = os.path.relpath(path, root) in _TARS
    found['imagenet' if is_tar else kind] += size
  return found


def _bytes(paths):
  return sum(path.stat().st_size for path in paths if path.is_file())


def _open(kind, root):
  match kind:
    case 'folder':
      return _open_folder(root)
    case 'raw':
      return _open_raw(root)
    case 'tfds':
      return _open_tfds(*tfds_records.find_sets(root))
  keys = {'source': kind} if kind == 'imagenet' else {}
  return _open_splits(kind, root, keys=keys)


def _finding(kind, name, detail=''):
  return functools.partial(Outcome, name, [(kind, detail)])


def _imagenet_findings(counts):
  for what, expected in _IMAGENET.items():
    if counts.get(what, expected) != expected:
      text = f'{what}: {counts[what]:,}, not {expected:,}'
      yield _finding('wrong_count', text)


def _open_splits(kind, path, options=({}, {}), first=(), keys=()):
  """Opens both splits as training does, with options for each.

  `first` are jobs before those of the images; `keys` see `Contents`.
  """
  opened, refused = {}, []
  for split, own in zip(sources.SPLITS, options, strict=True):
    try:
      opened[split] = sources.make_source(kind, split, path=str(path), **own)
    except UserError as error:
      refused.append(_finding('refused', split, str(error)))
  class_names = next((s.class_names for s in opened.values()), ())
  if kind == 'imagenet':
    counts = {f'{s} images': len(opened[s].labels) for s in opened}
    first = _imagenet_findings(counts)
  if len(class_names) == 1:
    refused.append(_finding('one_class', class_names[0]))
  images = (
    functools.partial(_examine_example, source, index, split)
    for split, source in opened.items()
    for index in range(source.num_examples)
  )
  total = sum(source.num_examples for source in opened.values())
  jobs = itertools.chain(first, refused, images)
  return Contents(kind, class_names, total, jobs, dict(keys), not refused)


def _examine_example(source, index, split):
  try:
    content, label = source.read(index)
  except UserError as error:
    skipped = isinstance(error, UnreadableImageError)
    found = [('unreadable' if skipped else 'damaged_file', str(error))]
    return Outcome(f'{source.name} {index}', found, split)
  return _examine_content(content, source.describe(index), split, label)


def _examine_content(content, name, split, label):
  is_file = isinstance(content, bytes)
  found = examine(content, name) if is_file else []
  key = digest(content) if len(content) else b''
  return Outcome(name, found, split, label, key)


def _open_raw(root):
  splits = raw.read_manifest(root)['splits']
  known = [splits[split] for split in sources.SPLITS if split in splits]
  notes = (
    _finding('note', name, 'left out when the set was written')
    for info in known
    for name in info['skipped']
  )
  sums = (
    functools.partial(_check_sum, root / entry['file'], entry['sha256'])
    for info in known
    for entry in [info['labels'], *info['shards']]
  )
  return _open_splits('raw', root, first=itertools.chain(notes, sums))


def _check_sum(path, expected):
  try:
    with path.open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except (OSError, ValueError):  # training refuses the set
    return Outcome(path.name, [])
  return Outcome(path.name, [('checksum', '')] if found != expected else [])


def _open_tfds(folder):
  described = tfds_records.read_description(folder.resolve())
  name, data_dir = described.folder.parent.name, described.folder.parents[1]
  keys = tfds.split_keys(described.num_examples)
  defaults = {'tfds_train_split': 'train', 'tfds_eval_split': 'validation'}
  splits = (defaults | keys).values()
  options = [{'tfds_name': name, 'tfds_split': split} for split in splits]
  read = {split.partition('[')[0] for split in splits}
  first = [
    _finding('note', split, 'splits that training does not read')
    for split in described.num_examples
    if split not in read
  ]
  if described.name == 'imagenet2012':
    counts = {**_IMAGENET, 'classes': len(described.class_names)}
    for split in sources.SPLITS:
      counts[f'{split} images'] = described.num_examples.get(split, 0)
    first += _imagenet_findings(counts)
  return _open_splits('tfds', data_dir, options, first, keys)


def _open_folder(root):
  splits = folder_lib.split_folders(root)
  listed = {
    split: folder_lib.list_classes(folder) for split, folder in splits.items()
  }
  class_names = list(next(iter(listed.values())))
  numbers = {normal(name): i for i, name in enumerate(class_names)}
  problems = {}
  for split, classes in listed.items():
    known = class_names if split == 'validation' else None
    problems[split] = [
      *folder_lib.find_problems(splits[split], classes, known, split == 'all')
    ]

  def jobs():
    for split, classes in listed.items():
      for kind, path, message in problems[split]:
        yield _finding(kind, _below(root, path), message)
      for path in folder_lib.loose_images(splits[split]) if classes else ():
        yield _finding('loose_image', _below(root, path))
      for name in sorted(numbers.keys() - set(map(normal, classes))):
        yield _finding('class_not_in_validation', name)  # of training never
    if root not in splits.values():
      used = {folder.name for folder in splits.values()}
      for name in sorted(set(folder_lib.subfolders(root)) - used):
        yield _finding('note', name, 'folders beside train and val: not read')
    for split, classes in listed.items():
      flat = {} if classes else {'': folder_lib.list_files(splits[split])}
      for name, listing in (classes or flat).items():
        yield from _listing_jobs(
          root, listing, split, numbers.get(normal(name))
        )

  total = sum(len(c.paths) for found in listed.values() for c in found.values())
  fits = not any(problems.values())
  return Contents('folder', class_names, total, jobs(), {}, fits)


def _listing_jobs(root, listing, split, label):
  for path, what in listing.left_out:
    is_image = what == 'other files' and _is_image(path)
    if is_image or what.startswith('images'):
      yield _finding('unknown_suffix', _below(root, path))
    else:
      yield _finding('note', _below(root, path), f'{what}: left out')
  for path in listing.paths:
    yield functools.partial(_examine_path, root, path, split, label)


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


def _examine_path(root, path, split, label):
  name = _below(root, path)
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    return Outcome(name, [('unreadable', error.strerror)], split, label)
  return _examine_content(content, name, split, label)


def digest(content: bytes | np.ndarray) -> bytes:
  """Returns 16 bytes that stand for the content."""
  return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def examine(encoded: bytes, name: str) -> list[tuple[str, str]]:
  """Decodes an image file as training does, and looks at its kind.

  Returns pairs of a kind of finding and a detail; of an image that cannot be
  decoded, one that says why. The suffix of `name` is compared with the content.
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
  """Returns what is unusual about an image that training copes with."""
  mode, size = image.mode, image.size
  suffix = os.path.splitext(name)[1].lower()
  # JPEGs of phones are MPO: a preview behind the picture, which is no frame.
  form = image.format.replace('MPO', 'JPEG')
  depth = encoded[_PNG_DEPTH_AT] if form == 'PNG' else 8
  if form == 'TIFF':
    depth = max(image.tag_v2.get(_TIFF_DEPTH, (8,)))
  is_other = PIL.Image.EXTENSION.get(suffix) != form
  has_frames = image.format != 'MPO' and getattr(image, 'is_animated', False)
  found = {
    'gray: read as RGB': mode in ('1', 'L', 'LA', 'La'),
    'with a palette: read as RGB': mode in ('P', 'PA'),
    'CMYK or YCCK: read as RGB': mode == 'CMYK',
    'transparent: only the colors are read': (
      mode[-1] in 'Aa' or 'transparency' in image.info
    ),
    'of 16 bits per channel: cut to 8': mode.startswith('I') or depth > 8,
    f'named {suffix} but {image.format}: read as what they are': (
      folder_lib.is_image_name(suffix) and is_other
    ),
    f'with a side under {_SMALL} pixels: enlarged': 1 < min(size) < _SMALL,
    'with several frames: the first is read': has_frames,
    'turned by EXIF: read upright': decoding.orientation(image) > 1,
  }
  return [note for note, holds in found.items() if holds]
