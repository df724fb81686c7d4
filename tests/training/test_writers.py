import json

import pytest
from tensorboardX.proto import event_pb2

from alexnet_jax.training import writers


def write(workdir, *calls, step=0, evaluated_step=0):
  """Opens a writer, calls methods [(name, *arguments)] and closes it."""
  writer = writers.MetricWriter(
    workdir, step=step, evaluated_step=evaluated_step
  )
  for name, *arguments in calls:
    getattr(writer, name)(*arguments)
  writer.close()


def read_events(workdir):
  """All events of the files, without the records' framing."""
  events = []
  for path in sorted((workdir / 'events').iterdir()):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], 'little')
      events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return events


def values_of(workdir):
  """{(step, tag): value} of the event files."""
  events = read_events(workdir)
  return {(e.step, v.tag): v for e in events for v in e.summary.value}


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
  rows = [
    ('scalars', step, {f'{kind}/loss': 0.1 + step})
    for step in (2, 4, 6)
    for kind in ('train', 'eval')
  ]
  write(tmp_path, *rows)
  found = writers.read_rows(tmp_path)
  assert found == [{'step': step, **values} for _, step, values in rows]
  for _, step, values in rows:
    for tag, value in values.items():
      event = values_of(tmp_path)[step, tag]
      assert event.simple_value == pytest.approx(value)
  # Checkpoint 4 was saved before the evaluation at step 4 ended.
  write(tmp_path, step=4, evaluated_step=2)
  assert writers.read_rows(tmp_path) == found[:3]
  # TensorBoard drops what the first file has from step 5 on.
  starts = [e.step for e in read_events(tmp_path) if e.session_log.status]
  assert starts == [1, 5]


@pytest.mark.parametrize(
  'end',
  [
    *(b'{"step": 2, "a', b'3', b'{"step": 2}\xff', b'{"step": 9999999999}'),
    *(b'[' * 10**5, b'{"step": 2, "eval/top1": NaN}'),
    b'{"step": 2, "train/step_losses": [1, 2, 3]}',
  ],
)
def test_lines_that_are_no_rows_are_left_out(tmp_path, end, caplog):
  path = tmp_path / writers.METRICS_FILE
  path.write_bytes(json.dumps({'step': 1, 'a': 1.0}).encode() + b'\n' + end)
  assert writers.read_rows(tmp_path) == [{'step': 1, 'a': 1.0}]
  assert f'{path}: line 2' in caplog.text
  write(tmp_path, ('scalars', 2, {'a': 2.0}), step=1)
  assert [row['a'] for row in writers.read_rows(tmp_path)] == [1.0, 2.0]


def test_the_loss_of_every_step(tmp_path):
  """Those after the last log point come again in a longer run."""
  writer = writers.MetricWriter(tmp_path, step=0, evaluated_step=0)
  writer.step_losses(12, [3.0, 2.0, 1.0])
  writer.last_row(13, {'train/loss': 0.5}, [0.5])
  writer.close()
  values = values_of(tmp_path)
  assert values.pop((13, 'train/loss')).simple_value == 0.5
  losses = [(step, value.simple_value) for (step, _), value in values.items()]
  assert losses == [(10, 3.0), (11, 2.0), (12, 1.0), (13, 0.5)]
  last = writers.read_rows(tmp_path)[1]
  assert (last['step'], last['train/loss']) == (13, 0.5)
  write(tmp_path, ('step_losses', 14, [0.5, 0.25]), step=13)
  assert writers.read_rows(tmp_path) == [
    {'step': 12, 'train/step_losses': [3.0, 2.0, 1.0]},
    {'step': 14, 'train/step_losses': [0.5, 0.25]},
  ]
