import io

import pytest

from alexnet_jax.training import console as console_lib


class Terminal(io.StringIO):
  def isatty(self):
    return True


def show(stream):
  console = console_lib.Console(stream)
  console.table('a run', {'devices': '4 x cpu'})
  console.start(10, 4, 'step', 'training')
  for done in range(5, 9):
    console.advance(done)
    console.values('loss 0.5000', f'step {done}/10', ', 3 s left')
  console.line('an evaluation')
  console.stop()
  return stream.getvalue()


def test_a_terminal_gets_a_bar():
  text = show(Terminal())
  assert '\r' in text
  assert '8/10' in text
  assert 'left, loss 0.5000' in text
  assert 'an evaluation\n' in text


def test_anything_else_gets_lines():
  text = show(io.StringIO())
  assert '\r' not in text
  lines = [line for line in text.splitlines() if 'loss' in line]
  assert lines == [
    f'step {done}/10: loss 0.5000, 3 s left' for done in range(5, 9)
  ]
  assert '4 x cpu' in text
  assert text.splitlines()[-1] == 'an evaluation'


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(12.4, '12 s'), (250, '4 min 10 s'), (11_110, '3 h 05 min')],
)
def test_duration(seconds, text):
  assert console_lib.duration(seconds) == text


def test_speed_leaves_out_the_first_step_and_pauses(monkeypatch):
  now = 100.0
  monkeypatch.setattr(console_lib.time, 'perf_counter', lambda: now)

  class Batches:
    wait_seconds = 7.0

  class Log:
    flushed = 0

    def flush(self):
      self.flushed += 1

  batches, log = Batches(), Log()
  speed = console_lib.Speed(8, batches)
  now += 50  # compilation
  speed.count(log)
  assert speed.interval() == {}
  now += 2
  batches.wait_seconds += 0.5
  speed.count(log)
  speed.count(log)
  speed.pause()
  now += 1000  # evaluation
  speed.resume()
  assert speed.interval() == {
    'images_per_second': 8.0,
    'data_wait_fraction': 0.25,
  }
  now += 1
  speed.count(log)
  assert speed.interval()['images_per_second'] == 8.0
  assert speed.total() == 8.0
  assert log.flushed == 1
