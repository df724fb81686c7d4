"""The candidates of `bench data`: loaders and limits, checked and timed.

A loader that cannot read a layout raises NotImplementedError. Those that run
Python for each example share `Photographs`, with the fastest decoder at hand
and without needless copies, so that it is the loaders that are compared. A
limit is one part of the work, without order, batches or hand-over.
"""

from collections.abc import Callable
from collections.abc import Iterator
import concurrent.futures
from functools import partial
import importlib
import time

import cv2
import numpy as np
import simplejpeg

from alexnet_jax.bench.layouts import CROP
from alexnet_jax.bench.layouts import Task
from alexnet_jax.bench.layouts import TFDS_NAME

# Threads of its own on top of the loader's would only be in their way.
cv2.setNumThreads(0)
# Batches that a loader has begun ahead when the clock stops: it makes them
# after it, as it made as many before the clock started. Otherwise those that
# begin many batches ahead would look faster.
_TAIL = 6
# (task, number of batches) -> that many (images, labels).
Batches = Callable[[Task, int], Iterator[tuple[np.ndarray, np.ndarray]]]

# {name: function from JPEG bytes to RGB}.
DECODERS = {
  'simplejpeg': lambda encoded: simplejpeg.decode_jpeg(encoded, 'RGB'),
  'cv2': lambda encoded: cv2.imdecode(
    np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB
  ),
}


class Photographs:
  """The photographs of a layout: JPEG bytes, or squares in mapped memory.

  Attributes:
    labels: int32 [n].
    paths: files of the JPEGs; None if they are in no files of their own.
  """

  def __init__(self, task: Task):
    source = task.open_source()
    self._resize_size, self.paths = task.resize_size, None
    if task.kind == 'folder':
      self.paths = [str(source.root / path) for path in source.paths]
      self._read = self._read_file
    elif task.kind == 'tfds':
      import tensorflow_datasets as tfds  # read as TFDS itself does

      builder = tfds.builder_from_directory(task.path / TFDS_NAME / '1.0.0')
      skip = {'image': tfds.decode.SkipDecoding()}
      records = builder.as_data_source('train', decoders=skip)
      self._read = lambda index: records[index]['image']
    else:
      self._read = all_squares(source).__getitem__
    if task.kind == 'tfds':
      # Read once and not timed, as all labels here.
      labels = [source.read(i)[1] for i in range(source.num_examples)]
      self.labels = np.array(labels, np.int32)
    else:
      self.labels = source.labels

  def __len__(self) -> int:
    return len(self.labels)

  def _read_file(self, index):
    with open(self.paths[index], 'rb') as file:
      return file.read()

  def example(self, index: int, draws, decode, out=None) -> np.ndarray:
    """Returns a random crop, mirrored or not, written into `out` if given.

    The three draws in [0, 1) are of the row, the column and the mirroring.
    """
    pixels = self._read(index)
    if isinstance(pixels, bytes):
      pixels = decode(pixels)
    height, width = pixels.shape[:2]
    short = min(height, width)
    # The window in the original, resized alone: cheaper than the whole.
    window = round(CROP * short / self._resize_size)
    top = (height - short) // 2 + int(draws[0] * (short - window + 1))
    left = (width - short) // 2 + int(draws[1] * (short - window + 1))
    crop = pixels[top : top + window, left : left + window]
    if window != CROP:
      crop = cv2.resize(crop, (CROP, CROP), interpolation=cv2.INTER_LINEAR)
    if draws[2] < 0.5:
      return cv2.flip(crop, 1, dst=out)
    if out is None:
      return crop
    out[...] = crop
    return out

  def fill(self, out, indices, rng: np.random.Generator, decode) -> None:
    """Writes an example for each index into `out`; draws for all at once."""
    for row, draws in enumerate(rng.random((len(indices), 3)).tolist()):
      self.example(indices[row], draws, decode, out[row])


def all_squares(source) -> list[np.ndarray]:
  """Returns a view of every square of a raw set: no look-up when it is used."""
  return [square for shard in source.shards for square in shard]


def _shuffled_batches(num_examples, task, count):
  """Yields indices of `count` batches, epoch after epoch, each in new order."""
  rng = np.random.default_rng(1)
  order = np.empty(0, np.int64)
  for _ in range(count):
    while len(order) < task.batch_size:
      order = np.concatenate([order, rng.permutation(num_examples)])
    yield order[: task.batch_size]
    order = order[task.batch_size :]


def _ours(mirrors, task, count):
  from alexnet_jax.data import augment
  from alexnet_jax.data import pipeline
  from alexnet_jax.data.loader import Loader

  loader = Loader(
    task.open_source(), task.resize_size, num_threads=task.threads
  )
  iterator = pipeline.make_train_iter(
    loader,
    augment.Augmentation(augment.Crop(CROP)),
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


def _torch(name, task, count):
  import torch.utils.data

  if task.kind == 'raw' and name != 'simplejpeg':
    raise NotImplementedError('there is nothing to decode')

  class Dataset(torch.utils.data.Dataset):
    """Makes a whole batch in a worker, right where the consumer reads it."""

    def __init__(self):
      self.photographs = Photographs(task)
      self.rng = None

    def __len__(self):
      return len(self.photographs)

    def __getitems__(self, indices):
      if self.rng is None:
        self.rng = np.random.default_rng(torch.initial_seed())
      size = len(indices) * CROP * CROP * 3
      # Shared memory from the start, as torch's own default_collate has it.
      storage = torch.UntypedStorage._new_shared(size)
      image = torch.empty(0, dtype=torch.uint8).set_(storage)
      image = image.view(len(indices), CROP, CROP, 3)
      self.photographs.fill(image.numpy(), indices, self.rng, DECODERS[name])
      return image, torch.from_numpy(self.photographs.labels[indices])

  dataset = Dataset()
  order = list(_shuffled_batches(len(dataset), task, count))
  loader = torch.utils.data.DataLoader(
    dataset,
    batch_sampler=[indices.tolist() for indices in order],
    num_workers=task.threads,
    collate_fn=lambda batch: batch,
    # The workers share what is open and defined here.
    multiprocessing_context='fork',
  )
  for image, label in loader:
    yield image.numpy(), label.numpy()


def _grain(task, count):
  import grain

  photographs = Photographs(task)

  def augment(index, rng):
    decode = DECODERS['simplejpeg']
    image = photographs.example(index, rng.random(3), decode)
    return {'image': image, 'label': photographs.labels[index]}

  data = grain.MapDataset.range(len(photographs)).shuffle(seed=0)
  data = data.repeat().random_map(augment, seed=1)[: count * task.batch_size]
  # Grain's own 16 threads are slower than one per core.
  options = grain.ReadOptions(num_threads=task.threads)
  for batch in data.to_iter_dataset(options).batch(task.batch_size):
    yield batch['image'], batch['label']


def _spdl(task, count):
  from spdl.pipeline import PipelineBuilder

  photographs = Photographs(task)

  def make_batch(numbered):
    number, indices = numbered
    rng = np.random.default_rng(number)
    out = np.empty((len(indices), CROP, CROP, 3), np.uint8)
    photographs.fill(out, indices, rng, DECODERS['simplejpeg'])
    return out, photographs.labels[indices]

  order = enumerate(_shuffled_batches(len(photographs), task, count))
  builder = PipelineBuilder().add_source(order)
  builder = builder.pipe(make_batch, concurrency=task.threads)
  pipeline = builder.add_sink(2).build(num_threads=task.threads)
  with pipeline.auto_stop():
    yield from pipeline


def _tf_data(task, count):
  import tensorflow as tf

  if task.kind == 'tfds':
    raise NotImplementedError('tf.data does not read array_record')
  photographs, auto = Photographs(task), tf.data.AUTOTUNE
  examples = _tf_raw if task.kind == 'raw' else _tf_jpegs
  data, example = examples(task, photographs)
  data = data.map(example, num_parallel_calls=auto)
  options = tf.data.Options()
  options.deterministic = False
  data = data.batch(task.batch_size, True, num_parallel_calls=auto)
  data = data.prefetch(auto).with_options(options).take(count)
  yield from data.as_numpy_iterator()


def _tf_jpegs(task, photographs):
  """Decodes the random window only, and resizes that where it is asked."""
  import tensorflow as tf

  def example(path, label):
    encoded = tf.io.read_file(path)
    shape = tf.image.extract_jpeg_shape(encoded)[:2]
    short = tf.reduce_min(shape)
    window = short * CROP // task.resize_size
    corner = (shape - short) // 2 + tf.random.uniform(
      [2], maxval=short - window + 1, dtype=tf.int32
    )
    box = tf.concat([corner, [window, window]], 0)
    image = tf.image.decode_and_crop_jpeg(encoded, box, channels=3)
    if task.resize_size != task.short_side:
      image = tf.cast(tf.image.resize(image, (CROP, CROP)) + 0.5, tf.uint8)
    image = tf.ensure_shape(image, (CROP, CROP, 3))
    return tf.image.random_flip_left_right(image), label

  files = (photographs.paths, photographs.labels)
  data = tf.data.Dataset.from_tensor_slices(files)
  return data.shuffle(len(photographs)).repeat(), example


def _tf_raw(task, photographs):
  """Reads the shards in turn and shuffles as many as there are in memory."""
  import tensorflow as tf

  size = task.short_side

  def example(record, label):
    image = tf.reshape(tf.io.decode_raw(record, tf.uint8), (size, size, 3))
    image = tf.image.random_crop(image, (CROP, CROP, 3))
    return tf.image.random_flip_left_right(image), label

  paths = sorted(str(path) for path in task.path.glob('train-*-of-*.npy'))
  header_bytes = np.load(paths[0], mmap_mode='r').offset
  records = tf.data.FixedLengthRecordDataset(
    paths, size * size * 3, header_bytes=header_bytes
  )
  labels = tf.data.Dataset.from_tensor_slices(photographs.labels)
  data = tf.data.Dataset.zip((records, labels)).repeat()
  return data.shuffle(len(photographs)), example


def _crop_copy(task):
  squares = all_squares(task.open_source())
  out = np.ones((task.batch_size, CROP, CROP, 3), np.uint8)  # in memory now
  free = task.resize_size - CROP + 1

  def copy(i):
    # A corner that differs from one to the next, for no time at all.
    top, left = i * 7 % free, i * 13 % free
    out[i % len(out)] = squares[i][top : top + CROP, left : left + CROP]

  return len(squares), copy


def _decode_only(name, task):
  source, decode = task.open_source(), DECODERS[name]
  encoded = [source.read(i)[0] for i in range(source.num_examples)]
  return source.num_examples, lambda i: decode(encoded[i])


# (name for --peers, candidate, function). Those of `limits` are (task) ->
# (number of examples, function of an example's index), all others `Batches`.
CANDIDATES = (
  ('ours', 'ours', partial(_ours, False)),
  ('ours', 'ours, mirrored on the host', partial(_ours, True)),
  ('tf.data', 'tf.data', _tf_data),
  ('torch', 'torch DataLoader, simplejpeg', partial(_torch, 'simplejpeg')),
  ('torch', 'torch DataLoader, cv2', partial(_torch, 'cv2')),
  ('grain', 'Grain, per example', _grain),
  ('spdl', 'SPDL', _spdl),
  ('limits', 'crop copy', _crop_copy),
  ('limits', 'decode only (simplejpeg)', partial(_decode_only, 'simplejpeg')),
  ('limits', 'decode only (cv2)', partial(_decode_only, 'cv2')),
)
_MODULES = {'tf.data': 'tensorflow', 'spdl': 'spdl.pipeline'}


class Handler:
  """Answers requests for the candidates of one library; see `workers`."""

  def __init__(self, library: str):
    """Imports the library: that of --peers, `ours` or `limits`."""
    self._is_limit = library == 'limits'
    self._candidates = {
      name: function for of, name, function in CANDIDATES if of == library
    }
    if library not in ('ours', 'limits'):
      importlib.import_module(_MODULES.get(library, library))

  def candidates(self) -> list[str]:
    """Returns their names."""
    return list(self._candidates)

  def check(self, candidate: str, task: Task) -> None:
    """Tries a candidate; raises NotImplementedError if it lacks the layout."""
    function = self._candidates[candidate]
    if not self._is_limit:
      check_batches(function, task, len(task.open_source().class_names))
    elif (task.kind == 'raw') != (function is _crop_copy):
      raise NotImplementedError('this layout has no such part')

  def measure(self, candidate: str, task: Task, num_batches: int) -> float:
    """Returns images per second."""
    measured = _limit if self._is_limit else _throughput
    return measured(self._candidates[candidate], task, num_batches)


def _throughput(batches: Batches, task: Task, num_batches: int) -> float:
  """Times the middle of a loader's work: it runs before and after."""
  warm_up = max(_TAIL, num_batches // 4)
  iterator = batches(task, warm_up + num_batches + _TAIL)
  for _ in range(warm_up):
    next(iterator)
  start = time.perf_counter()
  for _ in range(num_batches):
    next(iterator)
  seconds = time.perf_counter() - start
  for _ in iterator:  # to the end: nothing runs on into the next measurement
    pass
  return num_batches * task.batch_size / seconds


def check_batches(batches: Batches, task: Task, num_classes: int) -> None:
  """Raises ValueError unless two batches are what all loaders must make."""
  expected, orders = (task.batch_size, CROP, CROP, 3), []
  for image, label in batches(task, 2):
    if image.shape != expected or image.dtype != np.uint8:
      raise ValueError(f'images are {image.dtype} {image.shape}')
    if label.shape != expected[:1] or label.dtype.kind not in 'iu':
      raise ValueError(f'labels are {label.dtype} {label.shape}')
    if not 0 <= label.min() <= label.max() < num_classes:
      raise ValueError(f'labels are {label.min()} to {label.max()}')
    if image.std() < 1:
      raise ValueError('the images have no content')
    orders.append(label.tolist())  # a copy: batches may share memory
  if orders[0] == orders[1] or orders[0] == sorted(orders[0]):
    raise ValueError('the examples are not shuffled')


def _limit(part, task, num_batches):
  """Returns images per second of a part of the work, by all threads."""
  num_examples, work = part(task)
  order = np.random.default_rng(0).permutation(num_examples)
  # Mapped memory is slow where it is touched for the first time.
  warm_up = num_examples if task.kind == 'raw' else task.batch_size

  def share(indices):
    for i in indices.tolist():
      work(i)

  with concurrent.futures.ThreadPoolExecutor(task.threads) as pool:
    for count in (warm_up, num_batches * task.batch_size):
      shares = np.array_split(np.resize(order, count), task.threads)
      start = time.perf_counter()
      list(pool.map(share, shares))
      seconds = time.perf_counter() - start
  return count / seconds
