"""FFCV, which reads files of its own: .beton, beside the layout in the cache.

It needs a compiler, OpenCV and libturbojpeg to be installed:
apt-get install libopencv-dev libturbojpeg0-dev pkg-config; pip install ffcv.
"""

from alexnet_jax.bench.layouts import CROP
from alexnet_jax.bench.layouts import open_source
from alexnet_jax.bench.layouts import Task
from alexnet_jax.data import decoding
from alexnet_jax.data import images


def contenders() -> dict:
  """See `peers`."""
  import ffcv

  del ffcv
  return {'FFCV': _ffcv}


def _ffcv(task: Task, count: int):
  from ffcv.fields import decoders
  from ffcv.loader import Loader
  from ffcv.loader import OrderOption
  from ffcv.transforms import RandomHorizontalFlip
  from ffcv.transforms import ToTensor

  if task.layout.kind == 'tfds':
    raise NotImplementedError('FFCV does not read array_record')
  path = task.path.with_suffix('.beton')
  if not path.exists():
    _write(task, path)
  # Of the area of a square: windows of CROP pixels, which it does not resize.
  share = (CROP / task.layout.resize_size) ** 2
  crop = decoders.RandomResizedCropRGBImageDecoder(
    (CROP, CROP), scale=(share, share), ratio=(1, 1)
  )
  if open_source(task).num_examples < task.batch_size:
    raise NotImplementedError('an epoch of FFCV must have a whole batch')
  batches = 0
  loader = Loader(
    str(path),
    batch_size=task.batch_size,
    num_workers=task.threads,
    order=OrderOption.RANDOM,
    os_cache=True,
    drop_last=True,
    batches_ahead=2,
    pipelines={
      'image': [crop, RandomHorizontalFlip(), ToTensor()],
      'label': [decoders.IntDecoder(), ToTensor()],
    },
  )
  while batches < count:
    for image, label in loader:
      if batches < count:
        yield image.numpy(), label.numpy()[:, 0]
      batches += 1


def _write(task, path):
  """Centre squares, as JPEGs or raw."""
  from ffcv.fields import IntField
  from ffcv.fields import RGBImageField
  from ffcv.writer import DatasetWriter

  source = open_source(task)

  class Squares:
    def __len__(self):
      return source.num_examples

    def __getitem__(self, index):
      pixels, label = source.read(index)
      if isinstance(pixels, bytes):
        pixels = decoding.decode(pixels)
      return images.center_square(pixels, task.layout.short_side), label

  mode = 'raw' if task.layout.kind == 'raw' else 'jpg'
  fields = {
    'image': RGBImageField(write_mode=mode, jpeg_quality=90),
    'label': IntField(),
  }
  temporary = path.with_suffix('.tmp')
  # One worker: more are forked, and libraries here have threads.
  writer = DatasetWriter(str(temporary), fields, num_workers=1)
  writer.from_indexed_dataset(Squares())
  temporary.replace(path)
