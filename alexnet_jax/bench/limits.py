"""The parts of the work, bare: reading, decoding, cropping, copying.

Every limit has one part of a loader's work done by several workers at once,
without order, batches or hand-over, in threads or in processes.
"""

import concurrent.futures
import functools
import multiprocessing
import threading
import time

import numpy as np

from alexnet_jax.bench.examples import all_squares
from alexnet_jax.bench.examples import decoders
from alexnet_jax.bench.layouts import CROP
from alexnet_jax.bench.layouts import open_source
from alexnet_jax.bench.layouts import Task

_TIMEOUT = 120  # seconds, for processes to start
_barrier = None  # of a worker process


def contenders() -> dict:
  """{name: (task, number of batches) -> images per second}."""
  parts = {
    'read only, threads': (_read, False),
    'crop copy, threads': (_crop_copy, False),
    'crop copy, processes': (_crop_copy, True),
    'memcpy, threads': (_memcpy, False),
    'memcpy, processes': (_memcpy, True),
  }
  for name in decoders():
    part = functools.partial(_decode, name)
    parts[f'decode only ({name}), threads'] = (part, False)
    parts[f'decode only ({name}), processes'] = (part, True)
  return {
    name: functools.partial(_rate, part, processes)
    for name, (part, processes) in parts.items()
  }


def check(name: str, task: Task) -> None:
  """Raises NotImplementedError if a layout does not have that part."""
  if (task.layout.kind == 'raw') != name.startswith(('crop copy', 'memcpy')):
    raise NotImplementedError('this layout has no such part')


def bounds(name: str) -> bool:
  """Whether every loader has to do this part of the work, at least."""
  return name.startswith(('decode only', 'crop copy'))


def _read(task):
  source = open_source(task)
  return source.num_examples, source.read


def _decode(name, task):
  source = open_source(task)
  encoded = [source.read(i)[0] for i in range(source.num_examples)]
  decode = decoders()[name]
  return source.num_examples, lambda i: decode(encoded[i])


def _crop_copy(task):
  squares = all_squares(open_source(task))
  out = np.ones((task.batch_size, CROP, CROP, 3), np.uint8)  # in memory now
  free = task.layout.resize_size - CROP + 1

  def copy(i):
    # A corner that differs from one to the next, for no time at all.
    top, left = i * 7 % free, i * 13 % free
    out[i % len(out)] = squares[i][top : top + CROP, left : left + CROP]

  return len(squares), copy


def _memcpy(task):
  squares = all_squares(open_source(task))
  size = CROP * CROP * 3
  out = np.ones((task.batch_size, size), np.uint8)

  def copy(i):
    out[i % len(out)] = squares[i].reshape(-1)[:size]

  return len(squares), copy


def _rate(part, processes, task, num_batches):
  """Images per second of a part of the work, by all workers together."""
  run = functools.partial(_share, part, task, num_batches)
  numbers = range(task.threads)
  if processes:
    spans = list(_processes(task.threads).map(run, numbers))
  else:
    _set_barrier(threading.Barrier(task.threads))
    with concurrent.futures.ThreadPoolExecutor(task.threads) as pool:
      spans = list(pool.map(run, numbers))
  images = sum(count for _, _, count in spans)
  return images / (max(e for _, e, _ in spans) - min(s for s, _, _ in spans))


@functools.cache
def _processes(count):
  """They stay until this process ends: they import much."""
  context = multiprocessing.get_context('spawn')  # libraries have threads
  barrier = context.Barrier(count)
  return concurrent.futures.ProcessPoolExecutor(
    count, context, _set_barrier, (barrier,)
  )


def _set_barrier(barrier):
  global _barrier
  _barrier = barrier


def _share(part, task, num_batches, number):
  """(start, end, count) of a worker's share of the images."""
  num_examples, work = part(task)
  count = -(-num_batches * task.batch_size // task.threads)
  rng = np.random.default_rng(number)
  # Each worker has its own order, as in a shuffled epoch.
  indices = np.resize(rng.permutation(num_examples), count).tolist()
  # Mapped memory is slow where it is touched for the first time.
  warm_up = num_examples if task.layout.kind == 'raw' else task.batch_size
  for i in range(min(warm_up, num_examples)):
    work(i)
  _barrier.wait(_TIMEOUT)
  start = time.perf_counter()
  for i in indices:
    work(i)
  return start, time.perf_counter(), count
