import json

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from alexnet_jax.training import writers


def open_writer(workdir, step=0, evaluated_step=0):
  return writers.MetricWriter(workdir, step=step, evaluated_step=evaluated_step)


def test_rows_come_back(tmp_path):
  writer = open_writer(tmp_path)
  writer.scalars(5, {'train/loss': 0.1 + 0.2})
  writer.scalars(6, {'eval/loss': 2.0, 'eval/top1': 0.5})
  writer.close()
  assert writers.read_rows(tmp_path) == [
    {'step': 5, 'train/loss': 0.1 + 0.2},
    {'step': 6, 'eval/loss': 2.0, 'eval/top1': 0.5},
  ]


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
  writer = open_writer(tmp_path)
  for step in (2, 4, 6):
    writer.scalars(step, {'train/loss': step})
    writer.scalars(step, {'eval/loss': step})
  writer.close()
  # Checkpoint 4 was saved before the evaluation at step 4 ended.
  open_writer(tmp_path, step=4, evaluated_step=2).close()
  assert writers.read_rows(tmp_path) == [
    {'step': 2, 'train/loss': 2},
    {'step': 2, 'eval/loss': 2},
    {'step': 4, 'train/loss': 4},
  ]


def test_an_unfinished_line_is_dropped(tmp_path):
  path = tmp_path / writers.METRICS_FILE
  path.write_text(json.dumps({'step': 1, 'a': 1.0}) + '\n{"step": 2, "a')
  assert writers.read_rows(tmp_path) == [{'step': 1, 'a': 1.0}]
  writer = open_writer(tmp_path, step=1)
  writer.scalars(2, {'a': 2.0})
  writer.close()
  assert [row['a'] for row in writers.read_rows(tmp_path)] == [1.0, 2.0]


def read_events(folder):
  """The event files' records, with the format's framing taken off."""
  events = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], 'little')
      event = event_pb2.Event()
      event.ParseFromString(data[12 : 12 + length])
      events.append(event)
      data = data[16 + length :]
  return events


def test_event_files_hold_scalars_and_histograms(tmp_path):
  writer = open_writer(tmp_path)
  writer.scalars(7, {'eval/top1': 0.25})
  counts, edges = np.histogram(np.arange(100.0), bins=4)
  writer.histogram(7, 'params/conv1', counts, edges)
  writer.close()
  values = {
    value.tag: (event.step, value)
    for event in read_events(tmp_path / 'events')
    for value in event.summary.value
  }
  step, scalar = values['eval/top1']
  assert (step, scalar.simple_value) == (7, 0.25)
  step, histogram = values['params/conv1']
  assert step == 7
  assert histogram.histo.num == 100
  assert list(histogram.histo.bucket) == pytest.approx([25] * 4)
  assert histogram.histo.max == 99
