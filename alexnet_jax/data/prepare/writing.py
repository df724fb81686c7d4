"""Decodes in threads and writes the missing shards of a data set."""

import collections
from collections.abc import Callable
from collections.abc import Iterable
import concurrent.futures
import contextlib
import pathlib
import sys

from alexnet_jax.data.loader import Loader
from alexnet_jax.data.prepare.progress import Progress
from alexnet_jax.data.prepare.shards import by_split
from alexnet_jax.data.prepare.shards import Output
from alexnet_jax.data.prepare.shards import Shard
from alexnet_jax.errors import UserError

_CHUNK = 8  # examples that a thread takes at a time


def write_shards(
  out: Output,
  planned: list[Shard],
  loaders: dict[str, Loader],
  file_name: Callable[[Shard], str],
  convert: Callable[[Loader, int], object],
  write: Callable[[pathlib.Path, Iterable], dict],
) -> list[dict]:
  """Writes what is missing; returns the notes of all shards.

  Args:
    out: the folder.
    planned: the shards of all splits.
    loaders: one for each split.
    file_name: of a shard.
    convert: (loader, index) -> what `write` gets of an example, or None if it
      is skipped; called in threads.
    write: (path, converted examples in order) -> note with at least
      num_examples; called in this thread.

  Raises:
    UserError: if a split has no example left.
  """
  missing = [shard for shard in planned if out.note(shard) is None]
  if done := len(planned) - len(missing):
    print(f'{done} of {len(planned)} shards are there already', file=sys.stderr)
  total = sum(shard.stop - shard.start for shard in missing)
  workers = max(loader.num_threads for loader in loaders.values())
  with (
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
    Progress(total, f'writing {out.folder}') as progress,
  ):
    for shard in missing:
      examples = _converted(pool, workers, shard, loaders, convert, progress)
      with contextlib.closing(examples):
        out.add(
          shard,
          file_name(shard),
          lambda path, examples=examples: _note(write, path, examples),
        )
  notes = [out.note(shard) for shard in planned]
  for split, own in by_split(planned, notes).items():
    if not sum(note['num_examples'] for note in own):
      raise UserError(
        f'no image of {loaders[split].source.name} can be decoded'
      )
  return notes


def _note(write, path, examples):
  """Calls `write` and adds the names of the examples that were skipped."""
  skipped = []

  def kept():
    for example, name in examples:
      if example is None:
        skipped.append(name)
      else:
        yield example

  return {**write(path, kept()), 'skipped': skipped}


def _converted(pool, workers, shard, loaders, convert, progress):
  """(converted example or None, its name if None), in order."""
  loader = loaders[shard.split]

  def work(start):
    results = []
    for index in range(start, min(start + _CHUNK, shard.stop)):
      example = convert(loader, index)
      name = loader.source.describe(index) if example is None else ''
      results.append((example, name))
    return results

  # Few enough to keep memory flat, enough to keep every thread busy.
  ahead = 4 * workers
  pending = collections.deque()
  try:
    for start in range(shard.start, shard.stop, _CHUNK):
      pending.append(pool.submit(work, start))
      if len(pending) >= ahead:
        results = pending.popleft().result()
        yield from results
        progress.advance(len(results))
    while pending:
      results = pending.popleft().result()
      yield from results
      progress.advance(len(results))
  finally:
    for future in pending:
      future.cancel()
