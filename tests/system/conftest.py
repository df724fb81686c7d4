"""The command that trains, in this process."""

import functools
import signal

import pytest

from alexnet_jax import main as command


@pytest.fixture
def main(call):
  """Calls the command; see `call`. Its handlers of signals are gone then."""
  numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  before = {number: signal.getsignal(number) for number in numbers}
  yield functools.partial(call, command)
  for number, handler in before.items():
    if handler is not None:  # of C
      signal.signal(number, handler)
