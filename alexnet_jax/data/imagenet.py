"""ImageNet (ILSVRC-2012) in its two tars, read in place."""

import collections
import functools
import importlib.util
import pathlib

import numpy as np

from alexnet_jax.data import folder, splits, tar_shards
from alexnet_jax.errors import UserError

TRAIN_TAR, VALIDATION_TAR = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
NUM_VALIDATION = 50_000


class ImageNetSource(tar_shards.TarSource):
  """Images of one of the tars; those of training have keys SYNSET/NAME."""

  def file_name(self, index: int) -> str:
    """Returns the name in the tar, as TFDS gives it."""
    key = self.samples['key'][index].decode(**tar_shards.ENCODING)
    return key.rpartition('/')[2]


def imagenet_source(path: str, split: str) -> ImageNetSource:
  """Opens a split of ImageNet from the folder of its two tars, or of parts.

  That for training holds a tar of images for each synset, SYNSET.tar, that for
  validation ILSVRC2012_val_NUMBER.JPEG. A label is the index in the 1,000
  sorted synsets, as TFDS and torchvision number them; that of a validation
  image goes by its number, in the list that TFDS has. Examples are sorted by
  synset and name, those of validation by name.

  Raises UserError if a tar is missing, compressed, truncated or damaged, or
  holds something else, a name twice, or for validation a class that training
  lacks.
  """
  root = folder.data_folder(path, f'{TRAIN_TAR} and {VALIDATION_TAR}')
  training = _open_tar(root, 'train', TRAIN_TAR)
  if split == 'train':
    return training
  return _open_tar(root, 'validation', VALIDATION_TAR, training)


def _open_tar(root, split, name, training=None):
  path = root / name
  if not path.is_file():
    packed = [f'uncompress {p.name}' for p in sorted(root.glob(f'{name}.*'))]
    fetch = 'download it from https://image-net.org/download-images'
    raise UserError(f'{path} is missing: {(packed or [fetch])[0]}')
  index = _index_validation if training else _index_training
  sizes, samples = tar_shards.open_index(root, (name,), index)
  names = splits.check_labels(path, samples['label'], _synsets(), training)
  return ImageNetSource(f'{root} {split}', root, (name,), sizes, samples, names)


def _index_training(root, shards):
  path = root / shards[0]
  labels = {f'{synset}.tar': i for i, synset in enumerate(_synsets())}
  tars = _list_tar(path, labels, 'no SYNSET.tar of task 1 and 2')

  def index(name):
    offset, size = tars[name]
    images = _list_tar(path, inner=name, start=offset, end=offset + size)
    below, label = name.removesuffix('.tar'), labels[name]
    return [
      (0, *images[n], label, f'{below}/{n}'.encode(**tar_shards.ENCODING))
      for n in sorted(images)
    ]

  rows = splits.in_threads(index, sorted(tars))
  return np.concatenate([tar_shards.sample_array(part) for part in rows])


def _index_validation(root, shards):
  label_of = {synset: label for label, synset in enumerate(_synsets())}
  labels = {
    f'ILSVRC2012_val_{number:08}.JPEG': label_of[synset]
    for number, synset in enumerate(_tfds_lines('validation_labels'), 1)
  }
  others = f'none of {min(labels)} to {max(labels)}'
  images = _list_tar(root / shards[0], labels, others)
  return tar_shards.sample_array(
    [(0, *images[n], labels[n], n.encode()) for n in sorted(images)]
  )


def _list_tar(path, known=None, others='', *, inner='', start=0, end=0):
  """Returns {name: (offset, size)} of a tar, or of a part of it that is one.

  All must be `known`, or else they are called `others`.
  """
  place = f'{path} file {inner}' if inner else path
  with path.open('rb') as file:
    listed = tar_shards.members(place, file, start, end)
  if not listed:
    raise UserError(f'{place} holds no files; fetch it again, or leave it out')
  counts = collections.Counter(name for name, _, _ in listed)
  name, count = counts.most_common(1)[0]
  if count > 1:
    raise UserError(f'{place} has the file {name!r} {count} times; leave one')
  if known and (odd := [name for name in counts if name not in known]):
    listed = f'{len(odd)} files that are {others}, the first: {odd[0]!r}'
    raise UserError(f'{path} has {listed}; fetch it again, or leave them out')
  return {name: (offset, size) for name, offset, size in listed}


@functools.cache
def _synsets():
  """Returns the names of the 1,000 classes, in the order of their labels."""
  return _tfds_lines('labels')


def _tfds_lines(name):
  """Reads a list of TFDS, without importing it, which takes seconds."""
  spec = importlib.util.find_spec('tensorflow_datasets')
  lists = pathlib.Path(spec.origin).with_name('datasets') / 'imagenet2012'
  return (lists / f'{name}.txt').read_text('utf-8').split()
