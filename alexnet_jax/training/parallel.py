"""Device mesh, mapped step functions and host-to-device transfer."""

from collections.abc import Callable
from contextlib import nullcontext

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from alexnet_jax.errors import UserError

AXIS = 'device'


def make_mesh(*, local: bool = False) -> Mesh:
  """Returns all devices, or those of this process, in one axis by process."""
  devices = jax.local_devices() if local else jax.devices()
  devices = sorted(devices, key=lambda d: (d.process_index, d.id))
  return Mesh(np.array(devices), (AXIS,))


def process_part(mesh: Mesh) -> tuple[int, int]:
  """Returns (index, count) of this process among those of the mesh."""
  indices = sorted({device.process_index for device in mesh.devices.flat})
  return indices.index(jax.process_index()), len(indices)


def check_batch_size(global_batch_size: int, device_count: int) -> None:
  """Raises UserError unless the devices share a batch evenly."""
  if global_batch_size % device_count:
    raise UserError(
      f'config.global_batch_size is {global_batch_size}, which'
      f' {device_count} devices do not divide; take a multiple of'
      f' {device_count}'
    )


def replicate(tree, mesh: Mesh):
  """Returns a tree, the same in every process, replicated over the devices."""
  sharding = NamedSharding(mesh, PartitionSpec())
  # Copies: on the CPU it could be the memory of a numpy array otherwise, which
  # cannot be donated.
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding, may_alias=False)

  def put(leaf):
    # jax.device_put would compare the leaf with that of all other processes.
    if isinstance(leaf, jax.Array):
      leaf = leaf.addressable_data(0)
    devices = mesh.local_devices
    shards = [jax.device_put(leaf, d, may_alias=False) for d in devices]
    return jax.make_array_from_single_device_arrays(
      np.shape(leaf), sharding, shards
    )

  return jax.tree.map(put, tree)


def broadcast_arrays(tree):
  """Returns the numpy arrays of process 0 in every process, bit for bit.

  The trees of the others have the same shapes and dtypes.
  """
  if jax.process_count() == 1:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  # As whole numbers: the sum that carries them would turn -0.0 into 0.0. In one
  # array: every shape would be compiled.
  content = np.concatenate(
    [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in leaves]
  )
  padded = np.pad(content, (0, -len(content) % 4)).view(np.uint32)
  content = multihost_utils.broadcast_one_to_all(padded).view(np.uint8)
  ends = np.cumsum([leaf.nbytes for leaf in leaves])
  parts = np.split(content[: ends[-1]], ends[:-1])
  return structure.unflatten(
    part.view(leaf.dtype).reshape(leaf.shape)
    for part, leaf in zip(parts, leaves, strict=True)
  )


def map_over_devices(
  function: Callable, mesh: Mesh, kind: str, *, donate_state: bool = False
) -> Callable:
  """Maps a pure per-device function (state, batch, ...) over the devices.

  State, further arguments and all results are the same on every device; the
  batch (see `batch_to_devices`) is sharded. Results must therefore be reduced
  over the axis `AXIS` inside. `kind` is pmap or shard_map; with `donate_state`
  the memory of the state is reused.
  """
  donated = (0,) if donate_state else ()

  # With `rest` in one: each argument has one specification.
  def on_device(state, batch, rest):
    return function(state, batch, *rest)

  def sharded(state, batch, *rest):
    return mapped(state, batch, rest)

  # The name in profiles and the compilation cache; `function` may be partial.
  name = getattr(function, 'func', function).__name__
  for each in (on_device, sharded):
    each.__name__ = each.__qualname__ = name

  if kind == 'pmap':
    all_devices = mesh.size == jax.device_count()
    mapped = jax.pmap(
      on_device,
      axis_name=AXIS,
      in_axes=(None, 0, None),
      out_axes=None,
      donate_argnums=donated,
      devices=None if all_devices else list(mesh.devices.flat),
    )
    return sharded

  replicated = PartitionSpec()
  mapped = jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(replicated, PartitionSpec(AXIS), replicated),
    out_specs=replicated,
    # As under pmap, the gradient of a shared parameter stays local until the
    # step reduces it.
    check_vma=False,
  )
  return jax.jit(sharded, donate_argnums=donated)


def batch_to_devices(batch: dict, mesh: Mesh, kind: str) -> dict:
  """Starts the copy of this process's part of a batch to its devices.

  Of numpy arrays [process_batch_size, ...] it makes global arrays split over
  the devices: [device_count, device_batch_size, ...] for pmap,
  [global_batch_size, ...] for shard_map.
  """
  sharding = NamedSharding(mesh, PartitionSpec(AXIS))

  def put(array):
    if kind == 'pmap':
      count = len(mesh.local_devices)
      array = array.reshape((count, -1, *array.shape[1:]))
    return jax.make_array_from_process_local_data(sharding, array)

  return jax.tree.map(put, batch)


class DeviceBatches:
  """Iterates over batches that are on the devices already, one step ahead.

  A checkpoint must hold `iterator_state`, that of the host iterator after the
  batch that was taken last.
  """

  def __init__(self, iterator, to_devices: Callable, waiting=nullcontext):
    """Takes a Grain iterator, and what starts the transfer of a batch.

    `waiting` gives a context for the wait for one.
    """
    self._iterator, self._to_devices = iterator, to_devices
    self._waiting = waiting
    self._ahead = None
    self.iterator_state = iterator.get_state()

  def take(self) -> dict:
    """Returns the next batch."""
    if self._ahead is None:
      self.fetch()
    ahead, self._ahead = self._ahead, None
    if isinstance(ahead, Exception):
      raise ahead
    batch, self.iterator_state = ahead
    return batch

  def fetch(self) -> None:
    """Starts the transfer of the batch that `take` returns next.

    If it cannot be read, `take` raises the error, after the step under way.
    """
    try:
      with self._waiting():
        batch = next(self._iterator, None)
    except Exception as error:
      self._ahead = error
      return
    if batch is not None:
      batch = self._to_devices(batch)
    self._ahead = batch, self._iterator.get_state()
