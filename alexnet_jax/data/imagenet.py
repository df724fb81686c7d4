"""ImageNet (ILSVRC-2012) in its two tars, read in place."""

import collections
import functools
import importlib.util
import io
import pathlib
import tarfile

import numpy as np

from alexnet_jax.data import folder
from alexnet_jax.data import splits
from alexnet_jax.data import tar_shards
from alexnet_jax.errors import UserError

TRAIN_TAR, VALIDATION_TAR = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
NUM_VALIDATION = 50_000
_DEVKIT = 'ILSVRC2012_devkit_t12'  # a folder, or a tar.gz of it
_DEVKIT_FILES = ('ILSVRC2012_validation_ground_truth.txt', 'meta.mat')


class ImageNetSource(tar_shards.TarSource):
  """Images of one of the tars; those of training have keys SYNSET/NAME."""

  def file_name(self, index: int) -> str:
    """Returns the name in the tar, as TFDS gives it."""
    key = self.samples['key'][index].decode(**tar_shards.ENCODING)
    return key.rpartition('/')[2]


def imagenet_source(path: str, split: str) -> ImageNetSource:
  """Opens a split of ImageNet from the folder of its two tars.

  That for training holds a tar of images for each synset, SYNSET.tar, that for
  validation ILSVRC2012_val_NUMBER.JPEG; either may be a part of the whole. A
  label is the index in the 1,000 sorted synsets, as TFDS and torchvision number
  them. That of a validation image goes by its number: the development kit tells
  it if it lies beside the tars, packed or not, or else the list that TFDS has.
  Examples are sorted by synset and name, those of validation by name.

  Raises:
    UserError: if a tar is missing, compressed, truncated or damaged, or holds
      something else, a name twice, or for validation a class that training
      lacks; if the development kit is damaged.
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
  try:
    sizes, samples = tar_shards.open_index(root, split, (name,), index)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  if training:
    numbers, samples = samples['label'], samples.copy()
    if not 1 <= numbers.min() <= numbers.max() <= NUM_VALIDATION:
      raise UserError(f'{root}/validation.index.npz is damaged: delete it')
    samples['label'] = _validation_labels(root)[numbers - 1]
  names = splits.check_labels(path, samples['label'], _synsets(), training)
  return ImageNetSource(root, split, (name,), sizes, samples, names)


def _index_training(root, shards):
  path = root / shards[0]
  labels = {f'{synset}.tar': i for i, synset in enumerate(_synsets())}
  tars = _list_tar(path)
  _refuse_others(path, tars, labels, 'no SYNSET.tar of task 1 and 2')

  def index(name):
    offset, size = tars[name]
    images = _list_tar(path, name, offset, offset + size)
    below, label = name.removesuffix('.tar'), labels[name]
    return _samples((f'{below}/{n}', label, images[n]) for n in sorted(images))

  return np.concatenate(splits.in_threads(index, sorted(tars)))


def _index_validation(root, shards):
  """Returns samples that have their numbers in place of labels."""
  path = root / shards[0]
  numbers = range(1, NUM_VALIDATION + 1)
  known = {f'ILSVRC2012_val_{number:08}.JPEG': number for number in numbers}
  images = _list_tar(path)
  _refuse_others(path, images, known, f'none of {min(known)} to {max(known)}')
  return _samples((name, known[name], images[name]) for name in sorted(images))


def _list_tar(path, inner='', start=0, end=0):
  """Returns {name: (offset, size)} of a tar, or of a part of it that is one."""
  place = f'{path} file {inner}' if inner else path
  with path.open('rb') as file:
    listed = tar_shards.members(place, file, start, end)
  if not listed:
    raise UserError(f'{place} holds no files; fetch it again, or leave it out')
  counts = collections.Counter(name for name, _, _ in listed)
  name, count = counts.most_common(1)[0]
  if count > 1:
    raise UserError(f'{place} has the file {name!r} {count} times; leave one')
  return {name: (offset, size) for name, offset, size in listed}


def _refuse_others(path, found, known, what):
  if others := [name for name in found if name not in known]:
    listed = f'{len(others)} files that are {what}, the first: {others[0]!r}'
    raise UserError(f'{path} has {listed}; fetch it again, or leave them out')


def _samples(images):
  """Returns samples of (key, label, (offset, size))."""
  return tar_shards.sample_array(
    [
      (0, *where, label, key.encode(**tar_shards.ENCODING))
      for key, label, where in images
    ]
  )


def _validation_labels(root):
  """Returns the labels of all images for validation, int32 [50000]."""
  kits = root / _DEVKIT, root / f'{_DEVKIT}.tar.gz'
  kit = next((path for path in kits if path.exists()), None)
  try:
    synsets = kit and _devkit_synsets(kit)
  except Exception as error:  # whatever a damaged file makes of it
    raise UserError(
      f'{kit} is no whole development kit of ILSVRC2012 ({error!r}); fetch it'
      ' again, or move it away: its labels come with TFDS, too'
    ) from error
  synsets = synsets or _tfds_lines('validation_labels')
  labels = {synset: label for label, synset in enumerate(_synsets())}
  return np.array([labels[synset] for synset in synsets], np.int32)


def _devkit_synsets(kit):
  """Returns the synsets of all images for validation, by their numbers."""
  if kit.is_dir():
    files = [(kit / 'data' / name).read_bytes() for name in _DEVKIT_FILES]
  else:
    with tarfile.open(kit) as tar:
      names = [f'{_DEVKIT}/data/{name}' for name in _DEVKIT_FILES]
      files = [tar.extractfile(name).read() for name in names]
  from scipy.io import loadmat  # slow

  table = loadmat(io.BytesIO(files[1]), squeeze_me=True)['synsets']
  table = table[table['num_children'] == 0]  # the others are made of these
  synsets = dict(zip(table['ILSVRC2012_ID'], table['WNID'], strict=True))
  found = [synsets[int(number)] for number in files[0].split()]
  if sorted(synsets.values()) != _synsets() or len(found) != NUM_VALIDATION:
    raise ValueError(f'{len(found):,} labels of {len(synsets):,} classes')
  return found


@functools.cache
def _synsets():
  """Returns the names of the 1,000 classes, in the order of their labels."""
  return _tfds_lines('labels')


def _tfds_lines(name):
  """Reads a list of TFDS, without importing it, which takes seconds."""
  spec = importlib.util.find_spec('tensorflow_datasets')
  lists = pathlib.Path(spec.origin).with_name('datasets') / 'imagenet2012'
  return (lists / f'{name}.txt').read_text('utf-8').split()
