"""The command that trains, in this process."""

import functools

import pytest

from alexnet_jax import main as command


@pytest.fixture
def main(call, handlers):
  """Calls the command; see `call`. Its handlers of signals are gone then."""
  return functools.partial(call, command)
