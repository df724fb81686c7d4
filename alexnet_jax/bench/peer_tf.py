"""tf.data: its own ops per example; for raw squares also numpy per batch."""

import os

import numpy as np

from alexnet_jax.bench.examples import Photographs
from alexnet_jax.bench.layouts import CROP
from alexnet_jax.bench.layouts import Task


def contenders() -> dict:
  """See `peers`."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  return {'tf.data': _own_ops, 'tf.data around numpy': _around_numpy}


def _own_ops(task: Task, count: int):
  import tensorflow as tf

  if task.layout.kind == 'tfds':
    raise NotImplementedError('tf.data does not read array_record')
  read = _raw if task.layout.kind == 'raw' else _jpegs
  data = read(task, Photographs(task)).batch(
    task.batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE
  )
  yield from _run(data, count)


def _jpegs(task, photographs):
  import tensorflow as tf

  def example(path, label):
    encoded = tf.io.read_file(path)
    return _augmented_jpeg(encoded, task.layout), label

  data = tf.data.Dataset.from_tensor_slices(
    (photographs.paths, photographs.labels)
  )
  data = data.shuffle(len(photographs)).repeat()
  return data.map(example, num_parallel_calls=tf.data.AUTOTUNE)


def _augmented_jpeg(encoded, layout):
  """Decodes the random window only, and resizes that where it is asked."""
  import tensorflow as tf

  shape = tf.image.extract_jpeg_shape(encoded)[:2]
  short = tf.reduce_min(shape)
  window = short * CROP // layout.resize_size
  corner = (shape - short) // 2 + tf.random.uniform(
    [2], maxval=short - window + 1, dtype=tf.int32
  )
  box = tf.concat([corner, [window, window]], 0)
  image = tf.image.decode_and_crop_jpeg(encoded, box, channels=3)
  if layout.resizes:
    image = tf.cast(tf.image.resize(image, (CROP, CROP)) + 0.5, tf.uint8)
  image = tf.ensure_shape(image, (CROP, CROP, 3))
  return tf.image.random_flip_left_right(image)


def _raw(task, photographs):
  """Reads the shards in turn and shuffles as many as there are in memory."""
  import tensorflow as tf

  size = task.layout.short_side

  def example(record, label):
    image = tf.reshape(tf.io.decode_raw(record, tf.uint8), (size, size, 3))
    image = tf.image.random_crop(image, (CROP, CROP, 3))
    return tf.image.random_flip_left_right(image), label

  paths = sorted(str(path) for path in task.path.glob('train-*-of-*.npy'))
  records = tf.data.FixedLengthRecordDataset(
    paths, size * size * 3, header_bytes=_npy_header(paths[0])
  )
  labels = tf.data.Dataset.from_tensor_slices(photographs.labels)
  data = tf.data.Dataset.zip((records, labels)).repeat()
  data = data.shuffle(len(photographs))
  return data.map(example, num_parallel_calls=tf.data.AUTOTUNE)


def _npy_header(path):
  """Bytes before the array."""
  return np.load(path, mmap_mode='r').offset


def _around_numpy(task: Task, count: int):
  """numpy cuts out whole batches in tf.data's threads."""
  import tensorflow as tf

  if task.layout.kind != 'raw':
    raise NotImplementedError('for raw squares only')
  photographs = Photographs(task)

  def make_batch(indices):
    rng = np.random.default_rng()
    out = np.empty((len(indices), CROP, CROP, 3), np.uint8)
    photographs.fill(out, indices, rng, decode=None)
    return out, photographs.labels[indices]

  data = tf.data.Dataset.range(len(photographs)).shuffle(len(photographs))
  data = data.repeat().batch(task.batch_size, drop_remainder=True)
  data = data.map(
    lambda i: tf.numpy_function(make_batch, [i], (tf.uint8, tf.int32)),
    num_parallel_calls=task.threads,
  )
  yield from _run(data, count)


def _run(data, count):
  import tensorflow as tf

  options = tf.data.Options()
  options.deterministic = False
  data = data.prefetch(tf.data.AUTOTUNE).with_options(options).take(count)
  yield from data.as_numpy_iterator()
