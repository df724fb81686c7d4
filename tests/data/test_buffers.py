import gc

import jax
import numpy as np

from alexnet_jax.data.buffers import Buffers


def address(array):
  return array.__array_interface__['data'][0]


def test_memory_is_used_again_when_nothing_refers_to_it():
  buffers = Buffers((4, 3))
  first = buffers.take()
  memory = address(first)
  assert first.shape == (4, 3)
  assert first.dtype == np.uint8
  del first
  assert address(buffers.take()) == memory


def test_views_keep_their_memory():
  buffers = Buffers((4, 3))
  array = buffers.take()
  array[...] = 7
  view = array.reshape(2, 6)[1:, ::2].T
  memory = address(array)
  del array
  others = [buffers.take() for _ in range(5)]
  for other in others:
    other[...] = 9
  assert memory not in [address(other) for other in others]
  assert (view == 7).all()
  del view
  assert address(buffers.take()) == memory


def test_an_array_outlives_its_buffers():
  buffers = Buffers((64,))
  array = buffers.take()
  array[...] = 5
  del buffers
  gc.collect()
  assert (array == 5).all()


def test_jax_arrays_that_share_the_memory_keep_it():
  """On the CPU, JAX takes aligned arrays over without a copy."""
  buffers = Buffers((1000,))
  arrays = []
  for value in range(20):
    block = buffers.take()
    assert address(block) % 64 == 0
    block[...] = value
    arrays.append(jax.device_put(block))
    del block
  for value, array in enumerate(arrays):
    assert (np.asarray(array) == value).all()
