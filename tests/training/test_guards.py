import math
import os
import signal
import sys

import pytest

from alexnet_jax.errors import Interrupted, NonFiniteLossError
from alexnet_jax.training import guards
from tests.system import commands


@pytest.mark.parametrize('loss', [math.nan, -math.inf])
def test_a_lost_loss_names_the_steps(loss):
  with pytest.raises(NonFiniteLossError, match=r'between steps 119 and 120\.'):
    guards.check_finite(loss, 120, 119)
  with pytest.raises(NonFiniteLossError, match=r'at step 40\.'):
    guards.check_finite(loss, 40, 40)  # an evaluation found it
  assert guards.check_finite(1e30, 2, 1) is None


@pytest.mark.parametrize(
  ('loss', 'warns'), [(6.86, True), (6.8, False), (7.0, False)]
)
def test_flat_loss(loss, warns, caplog):
  guards.warn_of_flat_loss(loss, 1000, 500)
  for cause in ('learning_rate', 'bias_init', 'norm', '6.9078'):
    assert (cause in caplog.text) == warns


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_a_signal_is_remembered(handlers, number):
  stop = guards.StopSignal()
  stop.install()
  stop.check()
  os.kill(os.getpid(), number)
  os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
  with pytest.raises(Interrupted, match=r'SIG(TERM|INT|HUP)'):
    stop.check()


def test_the_end_of_a_terminal_may_be_ignored(handlers):
  """As nohup does it."""
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  stop = guards.StopSignal()
  stop.install()
  os.kill(os.getpid(), signal.SIGHUP)
  assert stop.received is None


TWICE = """
import os, signal, threading, time
from alexnet_jax.training import guards
guards.StopSignal().install()
threading.Thread(target=time.sleep, args=(60,)).start()
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


def test_a_second_ctrl_c_ends_at_once():
  code, _, err = commands.run(sys.executable, '-c', TWICE)
  assert code == 1
  assert err == (
    '\ninterrupted: saving; Ctrl-C again ends at once\n'
    '\nended at once; the newest checkpoint stays valid\n'
  )
