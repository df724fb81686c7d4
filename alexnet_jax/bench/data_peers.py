"""The photographs and candidates of `bench data`: made, checked and timed.

The photographs are those of a folder of the user, or synthetic ones, kept on
disk in several layouts. A loader that cannot read a layout raises
NotImplementedError. Those that run Python for each example share `Photographs`,
with the fastest decoder at hand and without needless copies, so that it is the
loaders that are compared. A limit is one part of the work, without order,
batches or hand-over.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import concurrent.futures
from functools import partial
import importlib
import math
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from alexnet_jax.bench import harness
from alexnet_jax.data import decoding
from alexnet_jax.data import images
from alexnet_jax.data import sources
from alexnet_jax.data.folder import list_folder
from alexnet_jax.errors import UserError

CROP = 224  # width of the random crops, in pixels
# {name: (kind, short side of what is kept, width it is resized to before the
# crop)}; a kind is a folder of JPEG files, array_record of JPEGs, or raw.
LAYOUTS = {
  'folder-320': ('folder', 320, 320),
  'folder-320-to-256': ('folder', 320, 256),
  'folder-256': ('folder', 256, 256),
  'tfds-320': ('tfds', 320, 320),
  'tfds-256': ('tfds', 256, 256),
  'raw-256': ('raw', 256, 256),
}
# {name: function from JPEG bytes to RGB}.
DECODERS = {
  'simplejpeg': lambda encoded: simplejpeg.decode_jpeg(encoded, 'RGB'),
  'cv2': lambda encoded: cv2.imdecode(
    np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB
  ),
}
_TFDS_NAME = 'photographs'
_SYNTHETIC = 'synthetic: noise with the spectrum and JPEG size of photographs'
_DISTINCT, _CLASSES = 200, 10  # of the synthetic ones
_QUALITY = 90  # of all JPEGs
# Batches that a loader has begun ahead when the clock stops: it makes them
# after it, as it made as many before the clock started. Otherwise those that
# begin many batches ahead would look faster.
_TAIL = 6

# Threads of its own on top of the loader's would only be in their way.
cv2.setNumThreads(0)


class Task(NamedTuple):
  """A layout of the photographs, and what all candidates are given alike."""

  name: str  # of LAYOUTS
  kind: str
  short_side: int
  resize_size: int
  folder: str  # that holds all layouts
  batch_size: int
  threads: int  # or processes, that a candidate may use

  @property
  def path(self) -> pathlib.Path:
    """Returns the folder of the layout."""
    prefix = 'jpeg' if self.kind == 'folder' else self.kind
    return pathlib.Path(self.folder, f'{prefix}-{self.short_side}')

  def open_source(self) -> sources.Source:
    """Opens all photographs."""
    tfds = {'tfds_name': _TFDS_NAME, 'tfds_split': 'train'}
    return sources.make_source(self.kind, 'train', path=str(self.path), **tfds)


# (task, number of batches) -> that many (images, labels).
Batches = Callable[[Task, int], Iterator[tuple[np.ndarray, np.ndarray]]]


def prepare(path: str, count: int, tasks: Sequence[Task]) -> dict:
  """Makes the layouts of the tasks, which are of one folder.

  Args:
    path: folder of images with a subfolder per class; '': synthetic ones.
    count: photographs in each layout; they repeat, mirrored every other time,
      if the folder has fewer.
    tasks: for all that is made.

  Returns:
    {source, images, distinct}.

  Raises:
    UserError: if the folder is unfit.
  """
  read, labels = _noise, [f'class_{i % _CLASSES}' for i in range(_DISTINCT)]
  if path:
    root = pathlib.Path(path).expanduser()
    train = root / 'train'
    source = list_folder(train if train.is_dir() else root)
    labels = [source.class_names[label] for label in source.labels]

    def read(index):
      return decoding.decode(source.read(index)[0])

  harness.tell(f'making {count} photographs')
  # Fewer than there are: spread over all classes.
  distinct = min(count, len(labels))
  chosen = np.linspace(0, len(labels) - 1, distinct).astype(int)

  def write(number):
    repeat, rank = divmod(number, distinct)
    pixels = read(chosen[rank])
    pixels = cv2.flip(pixels, 1) if repeat % 2 else pixels
    _write_jpegs(tasks[0].folder, number, labels[chosen[rank]], pixels)

  with concurrent.futures.ThreadPoolExecutor(tasks[0].threads) as pool:
    list(pool.map(write, range(count)))
  for task in tasks:
    _convert(task)
  return {'source': path or _SYNTHETIC, 'images': count, 'distinct': distinct}


def _noise(index):
  """Returns an image like a photograph: its power falls with frequency."""
  rows, columns = np.fft.fftfreq(384), np.fft.rfftfreq(512)
  frequencies = np.hypot(rows[:, None], columns)[..., None] + 1e-3
  rng = np.random.default_rng(index)
  # The colors differ by less than the brightness.
  noise = 3 * rng.standard_normal((384, 512, 1))
  noise = noise + rng.standard_normal((384, 512, 3))
  spectrum = np.fft.rfft2(noise, axes=(0, 1)) / frequencies**1.7
  pixels = np.fft.irfft2(spectrum, axes=(0, 1))
  return np.clip(128 + 50 * pixels / pixels.std(), 0, 255).astype(np.uint8)


def _write_jpegs(folder, number, label, pixels):
  """Writes a photograph into jpeg-320 and jpeg-256."""
  for size, image in (
    (320, images.resize_short_side(pixels, 320)),
    (256, images.center_square(pixels, 256)),
  ):
    encoded = simplejpeg.encode_jpeg(image, _QUALITY, 'RGB', '420')
    # Preparing wants a validation split; one image a class is enough.
    for name in (f'train/{label}/{number:05d}.jpg', f'val/{label}/any.jpg'):
      path = pathlib.Path(folder, f'jpeg-{size}', name)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(encoded)


def _convert(task):
  """Makes a layout that is no folder by `alexnet_jax.data.prepare`."""
  out, size = task.path, task.short_side
  if task.kind == 'folder':
    return
  if task.kind == 'tfds':
    command = ['resize', f'--path={task.folder}/jpeg-{size}']
    command += ['--name', _TFDS_NAME, '--quality', str(_QUALITY)]
  else:
    command = ['raw', f'--path={task.folder}/jpeg-320']
  command += ['--source=folder', f'--out={out}', f'--size={size}']
  prepare = [sys.executable, '-m', 'alexnet_jax.data.prepare', *command]
  done = subprocess.run(prepare, capture_output=True, text=True, check=False)
  if done.returncode:
    raise UserError(f'making {out} failed:\n{done.stderr}')


class Photographs:
  """The photographs of a layout, for those that run Python for each example.

  Attributes:
    labels: int32 [n], read once and not timed.
  """

  def __init__(self, task: Task, decoder: str = 'simplejpeg'):
    """Takes the name of one of DECODERS."""
    self._source, self._task = task.open_source(), task
    self._decode = DECODERS[decoder]
    if task.kind == 'tfds':
      self.labels = self._source.read_labels()
    else:
      self.labels = self._source.labels

  def example(self, index: int, draws, out=None) -> np.ndarray:
    """Returns a random crop, mirrored or not, written into `out` if given.

    The three draws in [0, 1) are of the row, the column and the mirroring.
    """
    pixels, _ = self._source.read(index)
    if self._task.kind != 'raw':
      pixels = self._decode(pixels)
    height, width = pixels.shape[:2]
    short = min(height, width)
    # The window in the original, resized alone: cheaper than the whole.
    window = round(CROP * short / self._task.resize_size)
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

  def batch_maker(self, count: int) -> Callable:
    """Returns a function that makes a batch, of its number and an empty array.

    It writes into the array and returns the labels. The order of the examples,
    epoch after epoch, is that of `count` batches.
    """
    rng, size = np.random.default_rng(1), self._task.batch_size
    epochs = -(-count * size // len(self.labels))
    order = [rng.permutation(len(self.labels)) for _ in range(epochs)]
    batches = np.concatenate(order)[: count * size].reshape(count, size)

    def make(number, out):
      indices = batches[number].tolist()
      draws = np.random.default_rng(number).random((size, 3)).tolist()
      for row, index in enumerate(indices):
        self.example(index, draws[row], out[row])
      return self.labels[indices]

    return make


def _ours(mirrors, task, count):
  from alexnet_jax.data import augment
  from alexnet_jax.data import pipeline
  from alexnet_jax.data.loader import Loader

  loader = Loader(
    task.open_source(), task.resize_size, num_threads=task.threads
  )
  iterator = pipeline.train_dataset(
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


def _shape(task):
  return task.batch_size, CROP, CROP, 3


def _torch(name, task, count):
  import torch.utils.data

  if task.kind == 'raw' and name != 'simplejpeg':
    raise NotImplementedError('there is nothing to decode')
  make, shape = Photographs(task, name).batch_maker(count), _shape(task)

  class Dataset(torch.utils.data.Dataset):
    """Makes a whole batch in a worker, right where the consumer reads it."""

    def __len__(self):
      return count

    def __getitem__(self, number):
      # Shared memory from the start, as torch's own default_collate has it.
      storage = torch.UntypedStorage._new_shared(math.prod(shape))
      image = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
      return image, torch.from_numpy(make(number, image.numpy()))

  loader = torch.utils.data.DataLoader(
    Dataset(),
    batch_size=None,
    num_workers=task.threads,
    # The workers share what is open and defined here.
    multiprocessing_context='fork',
  )
  for image, label in loader:
    yield image.numpy(), label.numpy()


def _grain(task, count):
  import grain

  photographs = Photographs(task)

  def augment(index, rng):
    image = photographs.example(index, rng.random(3))
    return {'image': image, 'label': photographs.labels[index]}

  data = grain.MapDataset.range(len(photographs.labels)).shuffle(seed=0)
  data = data.repeat().random_map(augment, seed=1)[: count * task.batch_size]
  # Grain's own 16 threads are slower than one per core.
  options = grain.ReadOptions(num_threads=task.threads)
  for batch in data.to_iter_dataset(options).batch(task.batch_size):
    yield batch['image'], batch['label']


def _spdl(task, count):
  from spdl.pipeline import PipelineBuilder

  make = Photographs(task).batch_maker(count)

  def make_batch(number):
    out = np.empty(_shape(task), np.uint8)
    return out, make(number, out)

  builder = PipelineBuilder().add_source(range(count))
  builder = builder.pipe(make_batch, concurrency=task.threads)
  pipeline = builder.add_sink(2).build(num_threads=task.threads)
  with pipeline.auto_stop():
    yield from pipeline


def _tf_data(task, count):
  """Decodes the random window only, and resizes that where it is asked."""
  import tensorflow as tf

  if task.kind == 'tfds':
    raise NotImplementedError('tf.data does not read array_record')
  source, size, auto = task.open_source(), task.short_side, tf.data.AUTOTUNE
  from_tensors = tf.data.Dataset.from_tensor_slices

  def window_of_jpeg(path):
    encoded = tf.io.read_file(path)
    shape = tf.image.extract_jpeg_shape(encoded)[:2]
    short = tf.reduce_min(shape)
    window = short * CROP // task.resize_size
    corner = (shape - short) // 2 + tf.random.uniform(
      [2], maxval=short - window + 1, dtype=tf.int32
    )
    box = tf.concat([corner, [window, window]], 0)
    image = tf.image.decode_and_crop_jpeg(encoded, box, channels=3)
    if task.resize_size != size:
      image = tf.cast(tf.image.resize(image, (CROP, CROP)) + 0.5, tf.uint8)
    return tf.ensure_shape(image, (CROP, CROP, 3))

  def crop_of_square(record):
    image = tf.reshape(tf.io.decode_raw(record, tf.uint8), (size, size, 3))
    return tf.image.random_crop(image, (CROP, CROP, 3))

  if task.kind == 'raw':
    paths = sorted(str(path) for path in task.path.glob('train-*-of-*.npy'))
    header_bytes = np.load(paths[0], mmap_mode='r').offset
    fixed_size = tf.data.FixedLengthRecordDataset
    records = fixed_size(paths, size**2 * 3, header_bytes=header_bytes)
    image_of = crop_of_square
  else:
    paths = [str(source.root / path) for path in source.paths]
    records, image_of = from_tensors(paths), window_of_jpeg

  def example(record, label):
    return tf.image.random_flip_left_right(image_of(record)), label

  data = tf.data.Dataset.zip((records, from_tensors(source.labels)))
  data = data.repeat().shuffle(source.num_examples)
  data = data.map(example, num_parallel_calls=auto)
  options = tf.data.Options()
  options.deterministic = False
  data = data.batch(task.batch_size, True, num_parallel_calls=auto)
  data = data.prefetch(auto).with_options(options).take(count)
  yield from data.as_numpy_iterator()


def _crop_copy(task):
  squares = [square for s in task.open_source().shards for square in s]
  out = np.ones(_shape(task), np.uint8)  # in memory now
  free = task.resize_size - CROP + 1

  def copy(i):
    # A corner that differs from one to the next, for no time at all.
    top, left = i * 7 % free, i * 13 % free
    out[i % len(out)] = squares[i][top : top + CROP, left : left + CROP]

  return len(squares), copy


def _decode_only(task):
  source, decode = task.open_source(), DECODERS['simplejpeg']
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
  ('limits', 'decode only', _decode_only),
)
_MODULES = {'tf.data': 'tensorflow', 'spdl': 'spdl.pipeline'}


class Handler:
  """Answers requests for the candidates of one library; see `harness`."""

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
  expected, orders = _shape(task), []
  for image, label in batches(task, 2):
    if (image.shape, image.dtype) != (expected, np.uint8):
      raise ValueError(f'images are {image.dtype} {image.shape}')
    if label.shape != expected[:1] or label.dtype.kind not in 'iu':
      raise ValueError(f'labels are {label.dtype} {label.shape}')
    if not 0 <= label.min() <= label.max() < num_classes:
      raise ValueError(f'labels are {label.min()} to {label.max()}')
    if image.std() < 1:
      raise ValueError('the images have no content')
    orders.append(label.tolist())  # a copy: batches may share memory
  if orders[0] in (orders[1], sorted(orders[0])):
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
