"""Accounts for the wall-clock of a run over all processes that it had.

Each has a line in `times.jsonl`, which a thread writes anew while it lives; one
that is killed before it opens the run's folder leaves no trace.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import threading
import time

from alexnet_jax import files
from alexnet_jax.training import writers

TIMES_FILE = 'times.jsonl'
NAMES = {  # of what time is spent on, with words for people
  'start': 'starting up: imports, data, restoring',
  'compile': 'compiling, with the first step',
  'train': 'steps',
  'data_wait': 'waiting for data',
  'evaluate': 'evaluations',
  'save': 'saves',
  'other': 'traces',
  'repeated': 'steps that were made again',
  'lost': 'unknown, before a kill',
}
KINDS = tuple(NAMES)[:-2]  # of what a process does; the others are of a run
# Between two writes: seconds, and the share of the process's time so far.
_INTERVAL, _SHARE = 0.05, 0.005


class Clock:
  """Seconds of this process by kind, and its speed; it is always in one kind.

  The first step is `compile`; the speed is that of `train` and `data_wait`.
  `first_step` is the step it goes on from, None while it starts up; for
  `mfu_per_image` see `build`.
  """

  def __init__(self, global_batch_size: int, age: float = 0.0):
    """Takes the seconds that count already, as those of starting up."""
    self.first_step = self.mfu_per_image = None
    self._global_batch_size, self._begun = global_batch_size, time.time() - age
    self._steps, self._timed, self._mark = 0, 0, (0, 0.0, 0.0)
    # As one value: another thread reads it.
    since = time.perf_counter() - age
    self._state = dict.fromkeys(KINDS, 0.0), 'start', since

  def read(self, now: float | None = None) -> dict[str, float]:
    """Returns the seconds of each kind until now."""
    seconds, kind, since = self._state
    now = time.perf_counter() if now is None else now
    return {**seconds, kind: seconds[kind] + now - since}

  def switch(self, kind: str) -> str:
    """Counts what follows as of a kind; returns the one before."""
    before, now = self._state[1], time.perf_counter()
    self._state = self.read(now), kind, now
    return before

  @contextlib.contextmanager
  def inside(self, kind: str) -> Iterator[None]:
    """Counts the block as of a kind."""
    before = self.switch(kind)
    try:
      yield
    finally:
      self.switch(before)

  def waiting(self) -> contextlib.AbstractContextManager:
    """Counts the block as `data_wait` if the run is training."""
    kind = self._state[1]
    return self.inside('data_wait' if kind == 'train' else kind)

  def count_step(self, log) -> None:
    """Counts a step; one that compiles is waited for, by log.flush()."""
    self._steps += 1
    if self._state[1] == 'compile':
      log.flush()
      self.switch('train')
    else:
      self._timed += 1

  def speed(self, whole: bool = False) -> dict[str, float]:
    """Returns {images_per_second, data_wait_fraction} since the last call.

    Or of all that was timed. Also mfu, a share, where the peak of the devices
    is known. Empty if no step since then was timed.
    """
    read, before = self.read(), (0, 0.0, 0.0) if whole else self._mark
    waited = read['data_wait']
    self._mark = now = self._timed, read['train'] + waited, waited
    steps, seconds, waited = (a - b for a, b in zip(now, before, strict=True))
    if not steps:
      return {}
    seconds = max(seconds, 1e-9)
    speed = steps * self._global_batch_size / seconds
    mfu = {} if (one := self.mfu_per_image) is None else {'mfu': one * speed}
    waits = {'data_wait_fraction': waited / seconds}
    return {'images_per_second': speed, **waits, **mfu}

  def line(self, ended: int) -> bytes:
    """Returns the line of this process in the file; `ended` is 0 or 1."""
    row = {'step': self._steps, 'begun': self._begun, 'ended': ended}
    if (first := self.first_step) is not None:
      row |= {'step': first + self._steps, 'first_step': first}
    row |= self.read()
    return json.dumps({k: round(v, 3) for k, v in row.items()}).encode()


@contextlib.contextmanager
def recorded(workdir: pathlib.Path, clock: Clock) -> Iterator[None]:
  """Keeps the line of this process up to date while the block runs.

  An error before the first step leaves the file as it was; a full disk costs
  the line, and not the run.
  """
  path, done, length = workdir / TIMES_FILE, threading.Event(), 0
  files.refuse_special_file(path)
  handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
  size = os.fstat(handle).st_size
  broken = size and os.pread(handle, 1, size - 1) != b'\n'  # by a power cut

  def write(ended):
    nonlocal length
    line = b'\n' * broken + clock.line(ended)
    length = max(length, len(line))
    with contextlib.suppress(OSError):
      os.pwrite(handle, line.ljust(length) + b'\n', size)

  def keep_writing():
    while not done.wait(_interval(clock.read())):
      write(ended=0)

  write(ended=0)
  thread = threading.Thread(target=keep_writing, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    if clock.first_step is not None:
      write(ended=1)
    elif size:
      os.ftruncate(handle, size)
    else:
      path.unlink()
    os.close(handle)


def _interval(row):  # to the next line of a process, in seconds
  return max(_INTERVAL, _SHARE * sum(row[kind] for kind in KINDS))


@dataclasses.dataclass(frozen=True)
class Account:
  """The wall-clock of a run over all processes that it had."""

  # Of each of NAMES; {} of no process. They add up to the time that the
  # processes ran. `repeated` is that of steps (with their waits) after the
  # checkpoint that a later process went on from; `lost` that of killed ones
  # until their next line was due, at most.
  seconds: dict[str, float]
  # Steps of `train` and `data_wait`; the first of each process is `compile`.
  timed_steps: float


def account(workdir: str | pathlib.Path) -> Account:
  """Reads how long the processes of a run took for what."""
  lives = [
    row
    for row in writers.read_rows(workdir, TIMES_FILE)
    if all(row.get(key, -1) >= 0 for key in ('begun', *KINDS))
  ]
  total = dict.fromkeys(NAMES, 0.0) if lives else {}
  steps, kept, next_begun = 0, math.inf, time.time()  # by later processes
  for life in reversed(lives):
    share = 0.0
    if (first := life.get('first_step')) is not None:
      # The first one compiled.
      timed, again = life['step'] - first - 1, life['step'] - max(first, kept)
      share, kept = min(1, max(0, again) / max(1, timed)), min(kept, first)
      steps += (1 - share) * max(0, timed)
    for kind in KINDS:
      lost = share * life[kind] * (kind in ('train', 'data_wait'))
      total[kind] += life[kind] - lost
      total['repeated'] += lost
    if not life.get('ended'):
      known = life['begun'] + sum(life[kind] for kind in KINDS)
      total['lost'] += min(max(0.0, next_begun - known), _interval(life))
    next_begun = life['begun']
  return Account(total, steps)


def table(seconds: dict[str, float]) -> list[tuple[str, float, str]]:
  """Returns rows (what was done, seconds, share of all) of an `Account`."""
  whole = sum(seconds.values()) or 1.0
  return [(NAMES[k], v, f'{v / whole:.1%}') for k, v in seconds.items() if v]
