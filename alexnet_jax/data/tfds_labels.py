"""The labels of all records of a TFDS set, which lie inside the records."""

import concurrent.futures
import os
import pathlib
import uuid

import numpy as np

from alexnet_jax.data import shard_files
from alexnet_jax.data.tfds_records import TfdsSource

_THREADS = 16  # they wait for the disk more than they compute
_CHUNK = 256  # records
_LARGE = 10_000  # records; their labels are kept in a file
# By the file that they are kept in, or would be.
_in_memory: dict[pathlib.Path, np.ndarray] = {}


def read_labels(source: TfdsSource) -> np.ndarray:
  """The label of every record, int32 [n], in order.

  All records have to be read for it. This process does it once; the labels of
  a large set are kept in the set's folder, in `labels_FINGERPRINT.npy`.

  Raises:
    UserError: if a record is damaged or has no label.
  """
  path = source.records.folder / f'labels_{source.fingerprint}.npy'
  if path not in _in_memory:
    labels = _load(path)
    if labels is None or len(labels) != source.num_examples:
      labels = _read(source)
      if len(labels) >= _LARGE:
        _keep(path, labels)
    _in_memory[path] = labels
  return _in_memory[path]


def _read(source):
  count = source.num_examples
  if count >= _LARGE:
    shard_files.warn_once(
      f'{source.name}: reading {count:,} records for their labels, which lie'
      ' inside them'
    )
  labels = np.empty(count, np.int32)

  def read(start):
    for index in range(start, min(start + _CHUNK, count)):
      labels[index] = source.read(index)[1]

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for _ in pool.map(read, range(0, count, _CHUNK)):
      pass
  return labels


def _load(path):
  """The labels of a file; None if it is missing or damaged."""
  try:
    return np.load(path)
  except (OSError, ValueError, EOFError):
    return None


def _keep(path, labels):
  # Two processes may write it at once; a reader sees a whole one or none.
  temporary = path.with_name(f'.{path.stem}.{uuid.uuid4().hex}.tmp')
  try:
    try:
      with open(temporary, 'wb') as file:
        np.save(file, labels)
        os.fsync(file.fileno())
      temporary.replace(path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    shard_files.warn_once(
      f'{path} cannot be written ({error.strerror}): every start reads all'
      ' records for their labels'
    )
