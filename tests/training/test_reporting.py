"""Durations and speed of a run."""

import pytest

from alexnet_jax.training import reporting


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(12.4, '12 s'), (250, '4 min 10 s'), (11_110, '3 h 05 min')],
)
def test_duration(seconds, text):
  assert reporting.duration(seconds) == text


def test_speed_leaves_out_the_first_step_and_pauses(monkeypatch):
  now = 100.0
  monkeypatch.setattr(reporting.time, 'perf_counter', lambda: now)

  class Batches:
    wait_seconds = 7.0

  class Log:
    flushed = 0

    def flush(self):
      self.flushed += 1

  batches, log = Batches(), Log()
  speed = reporting.Speed(8, batches)
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
