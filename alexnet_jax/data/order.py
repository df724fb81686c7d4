"""The examples and the random draws that make up batch t.

Pure functions of (seed, t): no state, so nothing to restore. Batch t of B
examples takes the positions t * B to (t + 1) * B - 1 of an endless sequence of
epochs without gaps; position p is example `permutation(epoch)[p % n]` of epoch
p // n. A process takes a slice of the batch, so the batch as a whole does not
depend on the number of processes.
"""

import hashlib
import threading

import numpy as np

# The second word of a random stream's seed tells its purpose.
_PERMUTATION, _DRAWS, _RESIZED_CROPS, _BRIGHTNESS, _COLOR = range(5)
DRAWS_PER_EXAMPLE = 3  # crop row, crop column, flip
CROP_ATTEMPTS = 10  # at a random-resized crop that fits, as in torchvision

_orders: dict[tuple[int, int, int], np.ndarray] = {}
_orders_lock = threading.Lock()


def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """Returns the order of the examples in one epoch, uint32 [num_examples].

  The newest two are kept, as a batch may reach into the next epoch: 8 bytes an
  example in all, at no moment more.
  """
  key = (seed, epoch, num_examples)
  with _orders_lock:
    if key not in _orders:
      while len(_orders) > 1:
        del _orders[next(iter(_orders))]  # the oldest
      order = np.arange(num_examples, dtype=np.uint32)
      generator(seed, _PERMUTATION, epoch).shuffle(order)
      order.setflags(write=False)
      _orders[key] = order
    return _orders[key]


def batch_positions(step: int, global_batch_size: int) -> np.ndarray:
  """Returns the positions of batch `step`, int64 [global_batch_size]."""
  start = step * global_batch_size
  return np.arange(start, start + global_batch_size, dtype=np.int64)


def examples_at(
  positions: np.ndarray, num_examples: int, seed: int
) -> np.ndarray:
  """Returns the example indices, int64, at some positions (any shape)."""
  epochs, ranks = np.divmod(positions, num_examples)
  indices = np.empty(positions.shape, np.int64)
  for epoch in np.unique(epochs):
    chosen = epochs == epoch
    order = permutation(seed, int(epoch), num_examples)
    indices[chosen] = order[ranks[chosen]]
  return indices


def batch_draws(step: int, global_batch_size: int, seed: int) -> np.ndarray:
  """Returns uniform draws in [0, 1), float64 [global_batch_size, 3].

  The columns decide crop row, crop column and flip, whether or not they are
  switched on: switching one off leaves the others as they were.
  """
  shape = global_batch_size, DRAWS_PER_EXAMPLE
  return generator(seed, _DRAWS, step).random(shape)


def resized_crop_draws(
  step: int, global_batch_size: int, seed: int
) -> np.ndarray:
  """Returns uniform draws, float64 [global_batch_size, CROP_ATTEMPTS, 2].

  They lie in [0, 1) and decide area and aspect ratio of each attempt at a
  random-resized crop, whose corner comes from `batch_draws`.
  """
  shape = global_batch_size, CROP_ATTEMPTS, 2
  return generator(seed, _RESIZED_CROPS, step).random(shape)


def brightness_draws(
  step: int, global_batch_size: int, seed: int
) -> np.ndarray:
  """Returns uniform draws in [-1, 1), float32 [global_batch_size]."""
  draws = generator(seed, _BRIGHTNESS, step).random(global_batch_size)
  return (2 * draws - 1).astype(np.float32)


def color_draws(step: int, global_batch_size: int, seed: int) -> np.ndarray:
  """Returns standard normal draws, float64 [global_batch_size, 3]."""
  return generator(seed, _COLOR, step).standard_normal((global_batch_size, 3))


def digest(num_examples: int, global_batch_size: int, seed: int) -> str:
  """Returns a hash of the first batch's examples and of all kinds of draws.

  Another numpy may have a random generator that gives other numbers.
  """
  positions = batch_positions(0, min(global_batch_size, 1024))
  kinds = batch_draws, resized_crop_draws, brightness_draws, color_draws
  numbers = [
    examples_at(positions, num_examples, seed),
    # The last digits of normal draws may depend on the mathematical library.
    *(draw(0, len(positions), seed).round(6) for draw in kinds),
  ]
  return hashlib.sha256(b''.join(n.tobytes() for n in numbers)).hexdigest()[:16]


def generator(seed: int, purpose: int, number: int) -> np.random.Generator:
  """Returns the random stream of a purpose, for a step or an epoch by number.

  Each kind of draws has a purpose of its own.
  """
  sequence = np.random.SeedSequence(seed, spawn_key=(purpose, number))
  return np.random.Generator(np.random.Philox(sequence))
