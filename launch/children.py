"""Child processes that start together and end together."""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import ctypes
import fcntl
import functools
import os
import pathlib
import queue
import select
import signal
import subprocess
import sys
import termios
import threading
import time

_EXIT_INTERRUPTED = 75  # the same command goes on
_TAIL = 30  # lines
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class _Stderr:
  """Standard error, where process 0 and the launcher write in turns."""

  def __init__(self):
    self._lock = threading.Lock()
    self._within_line = False

  def write(self, content: bytes) -> None:
    with self._lock:
      self._write(content)

  def say(self, text: str) -> None:
    with self._lock:
      # What process 0 writes comes in pieces that may end within a line.
      start = '\n' if self._within_line else ''
      self._write(f'{start}{text}\n'.encode())

  def _write(self, content):
    self._within_line = not content.endswith(b'\n')
    # If nobody listens any more, the processes go on all the same.
    with contextlib.suppress(OSError):
      while content:
        content = content[os.write(2, content) :]


_STDERR = _Stderr()


def run(
  commands: Sequence[Sequence[str]],
  environments: Sequence[Mapping[str, str]],
  log_dir: pathlib.Path,
  *,
  grace: float,
  kill_after: float = 10.0,
) -> int:
  """Starts processes and waits for all; in a main thread without others.

  Args:
    commands: of process 0, 1, ...
    environments: theirs.
    log_dir: a folder for process_0.log, which gets the standard error of
      process 0, and process_1.log, ... with the whole output of the others.
    grace: seconds that the others get to end by themselves after one failed.
    kill_after: seconds between the SIGTERM after that and SIGKILL.

  Returns:
    0 if all returned 0, otherwise the exit code of the one that failed first;
    75 if a signal killed that one.

  Raises:
    OSError: if one cannot be started; none is left then.
  """
  children = _Children(log_dir, grace, kill_after)
  with children.signals_as_events():
    try:
      children.start(commands, environments)
      return children.wait()
    finally:
      children.kill()


def say(text: str) -> None:
  """Prints a message on standard error, on lines of its own."""
  _STDERR.say(text)


class _Children:
  """The processes of `run`."""

  def __init__(self, log_dir: pathlib.Path, grace: float, kill_after: float):
    self._log_dir = log_dir
    self._grace = grace
    self._kill_after = kill_after
    self._processes = []
    self._codes = {}  # of those that ended, in that order
    self._copier = None
    # (index, exit code) of a process that ended, (None, number) of a signal.
    # A SimpleQueue, because handlers of signals may put into it.
    self._events = queue.SimpleQueue()
    self._deadline = None
    self._means = [signal.SIGTERM, signal.SIGKILL]  # when it is over
    self._tail_shown = False

  @contextlib.contextmanager
  def signals_as_events(self):
    """Within the block SIGTERM and SIGINT are events."""
    before = {
      number: signal.signal(number, lambda n, _: self._events.put((None, n)))
      for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def start(self, commands, environments) -> None:
    prepare = _die_with_parent()
    for command, environment in zip(commands, environments, strict=True):
      self._processes.append(self._start_one(command, environment, prepare))
    # Threads only now: a fork beside them is not safe.
    self._copier = threading.Thread(target=self._copy, daemon=True)
    self._copier.start()
    for index in range(len(self._processes)):
      threading.Thread(target=self._await, args=(index,), daemon=True).start()

  def _start_one(self, command, environment, prepare):
    first = not self._processes
    with self._log(len(self._processes)).open('wb') as log:
      return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        # The launcher's own: nothing is changed or lost on the way.
        stdout=None if first else log,
        stderr=subprocess.PIPE if first else subprocess.STDOUT,
        # Ctrl-C reaches a whole group, and each must get a signal once.
        start_new_session=True,
        preexec_fn=prepare,
      )

  def _log(self, index):
    return self._log_dir / f'process_{index}.log'

  def _copy(self):
    """Keeps the standard error of process 0, and shows it."""
    with self._log(0).open('wb', buffering=0) as log:
      for chunk in _stderr_of(self._processes[0]):
        # The disk may be full; what is not read makes the process wait.
        with contextlib.suppress(OSError):
          log.write(chunk)
        _STDERR.write(chunk)

  def _await(self, index):
    self._events.put((index, self._processes[index].wait()))

  def wait(self) -> int:
    while len(self._codes) < len(self._processes):
      try:
        index, value = self._events.get(timeout=self._patience())
      except queue.Empty:
        self._end_the_rest()
        continue
      if index is None:
        self._send(value)
      else:
        self._note_end(index, value)
    self._copier.join()
    code = next(filter(None, self._codes.values()), 0)
    return _EXIT_INTERRUPTED if code < 0 else code

  def kill(self) -> None:
    """Ends what has not ended, at once."""
    self._send(signal.SIGKILL)
    for process in self._processes:
      process.wait()

  def _patience(self):
    if self._deadline is None:
      return None
    return max(0.0, self._deadline - time.monotonic())

  def _note_end(self, index, code):
    if code and not any(self._codes.values()):
      self._deadline = time.monotonic() + self._grace
    self._codes[index] = code
    if code in (0, _EXIT_INTERRUPTED):
      return  # the run has said itself what there is to say
    if index == 0:
      self._copier.join()  # its own last words come first
    say(f'process {index} {_describe(code)}')
    if not self._tail_shown:
      self._tail_shown = True
      self._show_tail(index)
      if left := self._left():
        say(f'{left} may take {self._grace:g} s to end, too')

  def _show_tail(self, index):
    with self._log(index).open(errors='replace') as log:
      lines = collections.deque(log, maxlen=_TAIL)
    if lines:
      text = ''.join(f'  {line.rstrip()}\n' for line in lines)
      say(f'the end of {self._log(index)}:\n{text}'.rstrip('\n'))

  def _end_the_rest(self):
    number = self._means.pop(0)
    say(f'{self._left()}: still running, gets {number.name}')
    self._send(number)
    self._deadline = None
    if self._means:
      self._deadline = time.monotonic() + self._kill_after

  def _left(self):
    indices = set(range(len(self._processes))) - set(self._codes)
    return ', '.join(f'process {index}' for index in sorted(indices))

  def _send(self, number):
    for index, process in enumerate(self._processes):
      if index not in self._codes:
        process.send_signal(number)


def _die_with_parent() -> Callable[[], None] | None:
  """What a new process calls so that it is killed when its parent is gone."""
  if not sys.platform.startswith('linux'):
    return None
  prctl = ctypes.CDLL(None).prctl
  prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
  return functools.partial(_prepare, os.getpid(), prctl)


def _prepare(parent, prctl):
  prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  if os.getppid() != parent:
    os._exit(1)  # it was gone before


def _stderr_of(process):
  """Yields what the process writes on its standard error until it ends."""
  pipe = process.stderr.fileno()
  while process.returncode is None:
    if select.select([pipe], [], [], 0.2)[0]:
      chunk = os.read(pipe, 1 << 16)
      if not chunk:
        return
      yield chunk
  # A process that it started may still have the pipe, and go on writing.
  left = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
  left = int.from_bytes(left, sys.byteorder)
  while left:
    chunk = os.read(pipe, left)
    left -= len(chunk)
    yield chunk


def _describe(code):
  if code >= 0:
    return f'ended with exit code {code}'
  try:
    return f'was killed by {signal.Signals(-code).name}'
  except ValueError:  # a real-time signal
    return f'was killed by signal {-code}'
