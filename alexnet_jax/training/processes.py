"""The processes of a run: they start together, agree, and end together.

Whatever crosses between processes here goes through the key-value store of
JAX's coordination service, in process 0; arrays go through the devices
(`parallel`). See `membership` for how a run of several processes ends.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import json
import sys
import traceback

import jax

from alexnet_jax import cli
from alexnet_jax import errors
from alexnet_jax.training.launched import Launched
from alexnet_jax.training.membership import Member
from alexnet_jax.training.membership import PREFIX
from alexnet_jax.training.membership import store

_SLICE = 1000  # ms; a wait in pieces lets Python handle signals in between
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'ABORTED', 'CANCELLED')


class Processes:
  """One of the processes of a run, and what it can say to the others.

  Every process must call the same methods in the same order.

  Attributes:
    index: number of this process.
    count: number of processes.
  """

  def __init__(self, index: int = 0, count: int = 1):
    self.index = index
    self.count = count
    self._calls = 0

  @property
  def is_first(self) -> bool:
    """Whether this is process 0, which writes files and talks to the user."""
    return self.index == 0

  @property
  def is_alone(self) -> bool:
    return self.count == 1

  def gather(self, value, check: Callable[[], None]) -> list | None:
    """In process 0 the JSON values of all, by index; elsewhere None.

    Args:
      value: of this process.
      check: called every second of waiting; may raise.
    """
    if self.is_alone:
      return [value]
    name = self._next_name()
    store().key_value_set(f'{name}/{self.index}', json.dumps(value))
    if not self.is_first:
      return None
    return [
      json.loads(_wait_for(f'{name}/{index}', check))
      for index in range(self.count)
    ]

  def tell(self, value, check: Callable[[], None]):
    """The JSON value that process 0 gave, in all; see `gather`."""
    if self.is_alone:
      return value
    name = self._next_name()
    if self.is_first:
      store().key_value_set(name, json.dumps(value))
      return value
    return json.loads(_wait_for(name, check))

  def meet(self, check: Callable[[], None]) -> None:
    """Waits until all processes are here; see `gather`."""
    self.gather(None, check)
    self.tell(None, check)

  def _next_name(self):
    self._calls += 1
    return f'{PREFIX}/{self._calls}'


ALONE = Processes()


_member: Member | None = None  # jax.distributed is one for a process, too


@contextlib.contextmanager
def joined(
  launched: Launched | None,
  *,
  start_timeout: int,
  heartbeat_timeout: int,
  check: Callable[[], None],
) -> Iterator[Processes]:
  """Starts jax.distributed, and shuts it down when all are done.

  After an exception in the block, the command must call `leave` once it has
  printed what it has to say.

  Args:
    launched: see `launched.find`; None: the only process.
    start_timeout: seconds to wait for the others.
    heartbeat_timeout: seconds of silence after which a process counts as lost.
    check: called while this process waits for the others to start, or to be
      done; may raise.

  Raises:
    UserError: if they cannot meet; `check` and the block may raise more.
    ProcessLost: if JAX says so in the block.
  """
  global _member
  if launched is None:
    yield ALONE
    return
  if launched.index:
    cli.set_prefix(f'process {launched.index}: ')
  _member = Member(launched, start_timeout)
  processes = Processes(launched.index, launched.count)
  try:
    _member.start(heartbeat_timeout, check)
    yield processes
    processes.meet(check)
  except jax.errors.JaxRuntimeError as error:
    if any(word in str(error) for word in _LOST):
      _member.wait_for_reason(5.0)
      error = errors.ProcessLost(str(error).splitlines()[0])
    _member.say_why(error)
    raise error from None
  except BaseException as error:
    _member.say_why(error)
    raise
  _member.finish()
  _member = None


def leave(code: int) -> None:
  """Ends this process if it is one of several and could not finish."""
  if _member is not None:
    if sys.exc_info()[0] is not None:
      traceback.print_exc()
    _member.leave(code)


def _wait_for(key, check):
  while True:
    check()
    try:
      return store().blocking_key_value_get(key, _SLICE)
    except jax.errors.JaxRuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise
