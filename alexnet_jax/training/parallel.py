"""The devices: mapping of step functions, and arrays on their way to them."""

from collections.abc import Callable
import functools
import time

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from alexnet_jax.errors import UserError

AXIS = 'device'


def make_mesh() -> Mesh:
  """All devices of all processes in one axis."""
  return Mesh(np.array(jax.devices()), (AXIS,))


def check_batch_size(global_batch_size: int, device_count: int) -> None:
  """Raises UserError unless the devices share a batch evenly."""
  if global_batch_size % device_count:
    raise UserError(
      f'config.global_batch_size is {global_batch_size}, which'
      f' {device_count} devices do not divide; take a multiple of'
      f' {device_count}'
    )


def replicate(tree, mesh: Mesh):
  """The tree on every device, as arrays that all of them share."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_template(tree, mesh: Mesh):
  """Shapes, dtypes and sharding of `replicate(tree, mesh)`, without arrays."""
  sharding = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
  )


def map_over_devices(
  function: Callable, mesh: Mesh, kind: str, *, donate_state: bool = False
) -> Callable:
  """Maps a per-device function (state, batch, ...) over the devices.

  State, further arguments and all results are the same on every device; the
  batch (see `batch_to_devices`) is split. Results must therefore be reduced
  over the axis `AXIS` inside.

  Args:
    function: pure; uses the axis name `AXIS`.
    mesh: of `make_mesh`.
    kind: `pmap` or `shard_map`.
    donate_state: whether the first argument's memory is reused; the caller's
      arrays are gone after the call.

  Returns:
    A compiled function of the same arguments.
  """
  donated = (0,) if donate_state else ()

  @functools.wraps(function)
  def positional(state, batch, *rest):
    return function(state, batch, *rest)

  if kind == 'pmap':
    mapped = {}

    def call(*arguments):
      # pmap wants one axis specification per argument.
      count = len(arguments)
      if count not in mapped:
        mapped[count] = jax.pmap(
          positional,
          axis_name=AXIS,
          in_axes=(None, 0) + (None,) * (count - 2),
          out_axes=None,
          donate_argnums=donated,
        )
      return mapped[count](*arguments)

    return call
  whole, split = PartitionSpec(), PartitionSpec(AXIS)

  def sharded(state, batch, *rest):
    return jax.shard_map(
      positional,
      mesh=mesh,
      in_specs=(whole, split) + (whole,) * len(rest),
      out_specs=whole,
      # As under pmap, the gradient of a shared parameter stays local until
      # the step reduces it.
      check_vma=False,
    )(state, batch, *rest)

  return jax.jit(sharded, donate_argnums=donated)


def batch_to_devices(batch: dict, mesh: Mesh, kind: str) -> dict:
  """Starts the copy of this process's part of a batch to its devices.

  Args:
    batch: numpy arrays [process_batch_size, ...].
    mesh: of `make_mesh`.
    kind: `pmap` or `shard_map`.

  Returns:
    Global arrays split over the devices: [device_count, device_batch_size, ...]
    for pmap, [global_batch_size, ...] for shard_map.
  """
  sharding = NamedSharding(mesh, PartitionSpec(AXIS))
  if kind == 'pmap':
    count = jax.local_device_count()
    batch = {
      name: array.reshape((count, -1, *array.shape[1:]))
      for name, array in batch.items()
    }
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }


class DeviceBatches:
  """Hands out batches that are on the devices already, one step ahead.

  Attributes:
    iterator_state: state of the host iterator after the batch that was taken
      last: what a checkpoint after that step must hold.
    wait_seconds: time spent waiting for the host iterator so far.
  """

  def __init__(self, iterator, to_devices: Callable[[dict], dict]):
    """`iterator` yields host batches and has get_state, as Grain's do."""
    self._iterator = iterator
    self._to_devices = to_devices
    self._ahead = None
    self.iterator_state = iterator.get_state()
    self.wait_seconds = 0.0

  def take(self) -> dict:
    """The next batch. Raises StopIteration after the last."""
    if self._ahead is None:
      self.fetch()
    batch, self.iterator_state = self._ahead
    self._ahead = None
    if batch is None:
      raise StopIteration
    return batch

  def fetch(self) -> None:
    """Starts the transfer of the batch that `take` gives next."""
    start = time.perf_counter()
    batch = next(self._iterator, None)
    self.wait_seconds += time.perf_counter() - start
    if batch is not None:
      batch = self._to_devices(batch)
    self._ahead = batch, self._iterator.get_state()
