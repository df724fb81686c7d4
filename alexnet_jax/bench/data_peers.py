"""The data pipeline and others, as `bench data` measures them.

Peers that run Python for each example share `Photographs`, with the fastest
decoder at hand and without needless copies, so that it is the loaders that are
compared.
"""

from collections.abc import Callable, Iterable, Sequence
import concurrent.futures
from functools import partial
import math
import pathlib
import time
from typing import NamedTuple

import numpy as np
import simplejpeg

from alexnet_jax.data import augment, images, pipeline, sources, splits
from alexnet_jax.data.loader import Loader

CROP = 224  # width of the random crops, in pixels
TFDS_NAME = 'photographs'
_RESIZED_CROPS = (0.08, 1.0), (3 / 4, 4 / 3)  # shares of area, width / height
_RAW_FACTOR = 8  # raw squares go by that much faster
# Batches before the clock starts and after it stops, or those that begin many
# batches ahead would look faster.
_TAIL = 6
_decode = partial(simplejpeg.decode_jpeg, colorspace='RGB')


class Task(NamedTuple):
  """A layout of the photographs, and what all candidates are given alike."""

  name: str  # of data.LAYOUTS, as the three after it
  kind: str
  short_side: int
  resize_size: int
  folder: pathlib.Path  # that holds all layouts
  batch_size: int
  num_batches: int  # that are timed, of JPEGs
  threads: int  # or processes, that a candidate may use

  @property
  def path(self) -> pathlib.Path:
    """Returns the folder of the layout."""
    return self.folder / f'{self.kind}-{self.short_side}'

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """Returns the shape of a batch."""
    return self.batch_size, CROP, CROP, 3

  def open_source(self) -> splits.Source:
    """Opens all photographs."""
    tfds = {'tfds_name': TFDS_NAME, 'tfds_split': 'train'}
    return sources.make_source(self.kind, 'train', path=str(self.path), **tfds)


def _decode_cv2(encoded):
  import cv2

  return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


class Photographs:
  """The photographs of a layout, for those that run Python for each example."""

  def __init__(
    self, task: Task, decode: Callable = _decode, averages: bool = True
  ):
    """Takes a function from the bytes of a JPEG to RGB.

    What is shrunk is averaged over areas, as ours; else it is interpolated,
    which is faster and lets fine patterns through.
    """
    self._source, self._task, self._decode = task.open_source(), task, decode
    self._averages = averages
    is_tfds = task.kind == 'tfds'
    # Read once and not timed.
    self.labels = self._source.read_labels() if is_tfds else self._source.labels

  def example(self, index: int, draws, out=None) -> np.ndarray:
    """Returns a random crop, mirrored or not, written into `out` if given.

    The five draws in [0, 1) are of row, column, mirroring, area and ratio.
    """
    import cv2

    pixels, _ = self._source.read(index)
    if self._task.kind != 'raw':
      pixels = self._decode(pixels)
    top, left, height, width = self._window(*pixels.shape[:2], draws)
    crop = pixels[top : top + height, left : left + width]
    if (height, width) != (CROP, CROP):
      shrinks = self._averages and min(height, width) > CROP
      how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
      crop = cv2.resize(crop, (CROP, CROP), interpolation=how)
    if draws[2] < 0.5:
      return cv2.flip(crop, 1, dst=out)
    if out is None:
      return crop
    out[...] = crop
    return out

  def _window(self, height, width, draws):
    """Returns (top, left, height, width) of what becomes the crop."""
    if not self._task.resize_size:
      return images.random_resized_box(
        height, width, draws[:2], [draws[3:]], *_RESIZED_CROPS
      )
    # The window in the original, resized alone: cheaper than the whole.
    short = min(height, width)
    window = round(CROP * short / self._task.resize_size)
    top = (height - short) // 2 + int(draws[0] * (short - window + 1))
    left = (width - short) // 2 + int(draws[1] * (short - window + 1))
    return top, left, window, window

  def batch_maker(self, count: int) -> Callable:
    """Returns (number of one of `count` batches, array to fill) -> labels."""
    rng, size = np.random.default_rng(1), self._task.batch_size
    epochs = range(-(-count * size // len(self.labels)))
    order = np.concatenate([rng.permutation(len(self.labels)) for _ in epochs])

    def make(number, out):
      indices = order[number * size : (number + 1) * size].tolist()
      draws = np.random.default_rng(number).random((size, 5)).tolist()
      for row, index in enumerate(indices):
        self.example(index, draws[row], out[row])
      return self.labels[indices]

    return make


def _ours(mirrors, task, count):
  import cv2

  source = task.open_source()
  loader = Loader(source, task.resize_size or 256, num_threads=task.threads)
  kind = 'random' if task.resize_size else 'random_resized'
  iterator = pipeline.train_dataset(
    loader,
    augment.Augmentation(augment.Crop(CROP, kind)),
    pipeline.Batching(task.batch_size),
    num_steps=count,
    seed=0,
  )
  for batch in iterator:
    image = batch['image']
    rows = np.flatnonzero(batch['flip']) if mirrors else ()

    def flip(first, end, image=image, rows=rows):
      for row in rows[first:end]:
        cv2.flip(image[row], 1, dst=image[row])

    loader.for_each(flip, len(rows), chunk=16)
    yield image, batch['label']


def _torch(decode, task, count):
  import torch.utils.data

  if task.kind == 'raw' and decode != _decode:
    raise NotImplementedError('there is nothing to decode')
  make = Photographs(task, decode).batch_maker(count)

  def make_batch(number):
    # Shared memory from the start, as torch's own default_collate has it.
    storage = torch.UntypedStorage._new_shared(math.prod(task.shape))
    image = torch.empty(0, dtype=torch.uint8).set_(storage).view(task.shape)
    return image, torch.from_numpy(make(number, image.numpy()))

  loader = torch.utils.data.DataLoader(
    range(count),
    batch_size=None,  # a worker makes a whole batch
    collate_fn=make_batch,
    num_workers=task.threads,
    multiprocessing_context='fork',  # the workers share what is open here
  )
  for image, label in loader:
    yield image.numpy(), label.numpy()


def _grain(task, count):
  import grain

  photographs = Photographs(task)

  def example(index, rng):
    image = photographs.example(index, rng.random(5))
    return {'image': image, 'label': photographs.labels[index]}

  data = grain.MapDataset.range(len(photographs.labels)).shuffle(seed=0)
  data = data.repeat().random_map(example, seed=1)[: count * task.batch_size]
  # Grain's own 16 threads are slower than one per core.
  options = grain.ReadOptions(num_threads=task.threads)
  for batch in data.to_iter_dataset(options).batch(task.batch_size):
    yield batch['image'], batch['label']


def _spdl(averages, task, count):
  from spdl.pipeline import PipelineBuilder

  if not averages and task.resize_size == task.short_side:
    raise NotImplementedError('there is nothing to resize')
  make = Photographs(task, averages=averages).batch_maker(count)

  def make_batch(number):
    out = np.empty(task.shape, np.uint8)
    return out, make(number, out)

  builder = PipelineBuilder().add_source(range(count))
  builder = builder.pipe(make_batch, concurrency=task.threads)
  loader = builder.add_sink(2).build(num_threads=task.threads)
  with loader.auto_stop():
    yield from loader


def _tf_data(task, count):
  """Decodes the random window only, and resizes that where it is asked."""
  import tensorflow as tf

  if task.kind == 'tfds':
    raise NotImplementedError('tf.data does not read array_record')
  source, side, auto = task.open_source(), task.short_side, tf.data.AUTOTUNE
  from_tensors = tf.data.Dataset.from_tensor_slices

  def crop_of_jpeg(path):
    encoded = tf.io.read_file(path)
    shape = tf.image.extract_jpeg_shape(encoded)[:2]
    if not task.resize_size:
      areas, ratios = _RESIZED_CROPS
      everything = tf.zeros((1, 0, 4))
      corner, window, _ = tf.image.sample_distorted_bounding_box(
        [*tf.unstack(shape), 3], everything, 0, 0.1, ratios, areas, 10, True
      )
      box = tf.concat([corner[:2], window[:2]], 0)
    else:
      short = tf.reduce_min(shape)
      window = short * CROP // task.resize_size
      corner = (shape - short) // 2 + tf.random.uniform(
        [2], maxval=short - window + 1, dtype=tf.int32
      )
      box = tf.concat([corner, [window, window]], 0)
    image = tf.image.decode_and_crop_jpeg(encoded, box, channels=3)
    if task.resize_size != side:
      image = tf.image.resize(image, (CROP, CROP), 'area')
      image = tf.cast(image + 0.5, tf.uint8)
    return tf.ensure_shape(image, (CROP, CROP, 3))

  def crop_of_square(record):
    image = tf.reshape(tf.io.decode_raw(record, tf.uint8), (side, side, 3))
    return tf.image.random_crop(image, (CROP, CROP, 3))

  if task.kind == 'raw':
    paths = sorted(str(path) for path in task.path.glob('train-*-of-*.npy'))
    skipped = np.load(paths[0], mmap_mode='r').offset
    records = tf.data.FixedLengthRecordDataset(paths, side**2 * 3, skipped)
    crop = crop_of_square
  else:
    records = from_tensors([str(source.root / path) for path in source.paths])
    crop = crop_of_jpeg

  def example(record, label):
    return tf.image.random_flip_left_right(crop(record)), label

  options = tf.data.Options()
  options.deterministic = False
  data = tf.data.Dataset.zip((records, from_tensors(source.labels)))
  data = data.repeat().shuffle(source.num_examples)
  data = data.map(example, num_parallel_calls=auto)
  data = data.batch(task.batch_size, True, num_parallel_calls=auto)
  data = data.prefetch(auto).with_options(options).take(count)
  yield from data.as_numpy_iterator()


def _keras(task, count):
  """Makes squares in float32, and crops those, as its guides do."""
  if task.kind != 'folder' or not task.resize_size:
    raise NotImplementedError('Keras reads folders, and crops one size')
  import tensorflow as tf  # isort: skip
  import keras

  def example(image, label):
    crop = tf.image.random_crop(image, task.shape[1:])
    return tf.cast(tf.image.random_flip_left_right(crop), tf.uint8), label

  auto, size = tf.data.AUTOTUNE, (task.resize_size,) * 2
  data = keras.utils.image_dataset_from_directory(
    task.path / 'train',
    batch_size=None,
    image_size=size,
    crop_to_aspect_ratio=True,
    verbose=False,
  )
  data = data.repeat().map(example, auto)
  data = data.batch(task.batch_size, True, num_parallel_calls=auto)
  yield from data.prefetch(auto).take(count).as_numpy_iterator()


def _bare(task, count):
  """Decodes or copies in threads, and hands nothing over."""
  source, size = task.open_source(), task.batch_size
  if task.kind == 'raw':
    examples = [square for shard in source.shards for square in shard]
  else:
    examples = [source.read(i)[0] for i in range(source.num_examples)]
  out = np.ones(task.shape, np.uint8)  # in memory now
  order = np.random.default_rng(0).permutation(len(examples))
  order = np.resize(order, (count, size)).tolist()

  def work(number):
    for i in order[number]:
      if task.kind == 'raw':
        out[i % size] = examples[i][:CROP, :CROP]
      else:
        _decode(examples[i])

  with concurrent.futures.ThreadPoolExecutor(task.threads) as pool:
    yield from pool.map(work, range(count))


# {name: (that of --peers, '': always there, (task, number of batches) -> that
# many (images, labels), or NotImplementedError for a layout it cannot read)}.
CANDIDATES = {
  'ours': ('', partial(_ours, False)),
  'ours, mirrored on the host': ('', partial(_ours, True)),
  'tf.data': ('tf.data', _tf_data),
  'keras.utils.image_dataset_from_directory': ('keras', _keras),
  'torch DataLoader, simplejpeg': ('torch', partial(_torch, _decode)),
  'torch DataLoader, cv2': ('torch', partial(_torch, _decode_cv2)),
  'Grain, per example': ('grain', _grain),
  'SPDL': ('spdl', partial(_spdl, True)),
  'SPDL, interpolating': ('spdl', partial(_spdl, False)),
  'bare decoding or copying': ('', _bare),
}


class Handler:
  """Answers requests for one candidate; see `harness`."""

  def __init__(self, candidate: str):
    """Takes one of CANDIDATES."""
    import cv2

    # Threads of its own on top of the loader's would only be in their way.
    cv2.setNumThreads(0)
    _, self._batches = CANDIDATES[candidate]

  def check(self, tasks: Sequence[Task]) -> dict[str, str]:
    """Tries the candidate; returns {layout that it cannot read: why}."""
    reasons = {}
    for task in tasks if self._batches != _bare else ():
      try:
        classes = len(task.open_source().class_names)
        check_batches(self._batches(task, 2), task, classes)
      except NotImplementedError as error:
        reasons[task.name] = str(error)
    return reasons

  def measure(self, task: Task) -> float:
    """Returns images per second in the middle of a loader's work."""
    count = task.num_batches * (_RAW_FACTOR if task.kind == 'raw' else 1)
    warm_up = max(_TAIL, count // 4)
    iterator = self._batches(task, warm_up + count + _TAIL)
    times = [time.perf_counter() for _ in iterator]
    # To the end, so that nothing runs on into the next measurement.
    seconds = times[warm_up + count - 1] - times[warm_up - 1]
    return task.batch_size * count / seconds


def check_batches(batches: Iterable, task: Task, num_classes: int) -> None:
  """Raises ValueError unless two batches are what all loaders must make."""
  orders = []
  for image, label in batches:
    if (image.shape, image.dtype) != (task.shape, np.uint8):
      raise ValueError(f'images are {image.dtype} {image.shape}')
    are_classes = np.isin(label, np.arange(num_classes)).all()
    if label.shape != task.shape[:1] or not are_classes:
      raise ValueError(f'labels are {label}')
    if image.std() < 1:
      raise ValueError('the images have no content')
    orders.append(label.tolist())  # a copy: batches may share memory
  if orders[0] in (orders[1], sorted(orders[0])):
    raise ValueError('the examples are not shuffled')
