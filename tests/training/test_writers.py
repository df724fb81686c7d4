import io
import json

import numpy as np
from PIL import Image
import pytest
from tensorboardX.proto import event_pb2

from alexnet_jax.training import metrics
from alexnet_jax.training import writers


def open_writer(workdir, step=0, evaluated_step=0):
  return writers.MetricWriter(workdir, step=step, evaluated_step=evaluated_step)


def write(workdir, *calls, **options):
  """Opens a writer, calls methods [(name, *arguments)] and closes it."""
  writer = open_writer(workdir, **options)
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
  """{tag: value} of the event files."""
  events = read_events(workdir)
  return {v.tag: v for event in events for v in event.summary.value}


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
  rows = [
    ('scalars', step, {f'{kind}/loss': 0.1 + step})
    for step in (2, 4, 6)
    for kind in ('train', 'eval')
  ]
  write(tmp_path, *rows)
  found = writers.read_rows(tmp_path)
  assert found == [{'step': step, **values} for _, step, values in rows]
  # Checkpoint 4 was saved before the evaluation at step 4 ended.
  write(tmp_path, step=4, evaluated_step=2)
  assert writers.read_rows(tmp_path) == found[:3]
  # TensorBoard drops what the first file has from step 5 on.
  starts = [e.step for e in read_events(tmp_path) if e.session_log.status]
  assert starts == [1, 5]


@pytest.mark.parametrize(
  'end', [b'{"step": 2, "a', b'3\n', b'{"note": 1}\n', b'{"step": 2}\xff\n']
)
def test_lines_that_are_no_rows_are_left_out(tmp_path, end, caplog):
  path = tmp_path / writers.METRICS_FILE
  path.write_bytes(json.dumps({'step': 1, 'a': 1.0}).encode() + b'\n' + end)
  assert writers.read_rows(tmp_path) == [{'step': 1, 'a': 1.0}]
  assert f'{path}: line 2' in caplog.text
  write(tmp_path, ('scalars', 2, {'a': 2.0}), step=1)
  assert [row['a'] for row in writers.read_rows(tmp_path)] == [1.0, 2.0]


def test_event_files_hold_scalars_and_histograms(tmp_path):
  counts, edges = np.histogram(np.arange(100.0), bins=4)
  write(
    tmp_path,
    ('scalars', 7, {'eval/top1': 0.25}),
    ('histogram', 7, 'params/conv1', counts, edges),
  )
  assert {e.step for e in read_events(tmp_path) if e.summary.value} == {7}
  values = values_of(tmp_path)
  assert values['eval/top1'].simple_value == 0.25
  histogram = values['params/conv1'].histo
  assert histogram.num == 100
  assert list(histogram.bucket) == pytest.approx([25] * 4)
  assert histogram.max == 99


def test_the_loss_of_every_step(tmp_path):
  """Those after the last log point come again in a longer run."""
  writer = open_writer(tmp_path)
  writer.step_losses(12, [3.0, 2.0, 1.0])
  writer.step_losses(13, [0.5], last=True)
  writer.step_losses(13, [], last=True)
  writer.close()
  events = [
    (event.step, value.simple_value)
    for event in read_events(tmp_path)
    for value in event.summary.value
  ]
  assert events == [(10, 3.0), (11, 2.0), (12, 1.0), (13, 0.5)]
  assert len(writers.read_rows(tmp_path)) == 2
  write(tmp_path, ('step_losses', 14, [0.5, 0.25]), step=13)
  assert writers.read_rows(tmp_path) == [
    {'step': 12, 'train/step_losses': [3.0, 2.0, 1.0]},
    {'step': 14, 'train/step_losses': [0.5, 0.25]},
  ]


def matrix(confusion):
  labels, predicted = np.nonzero(confusion)
  counts = np.asarray(confusion)[labels, predicted]
  return metrics.confusion_matrix(
    np.repeat(labels, counts), np.repeat(predicted, counts), len(confusion)
  )


def pixels_of(workdir):
  picture = values_of(workdir)['eval/confusion_picture'].image
  return np.asarray(
    Image.open(io.BytesIO(picture.encoded_image_string)).convert('L')
  )


def test_measures_of_the_classes(tmp_path):
  confusion = np.array([[8, 2, 0], [1, 9, 0], [0, 5, 0]])
  write(tmp_path, ('classes', 7, matrix(confusion), ['cat', 'dog', 'owl']))
  values = values_of(tmp_path)
  assert values['precision/00_cat'].simple_value == pytest.approx(8 / 9)
  assert values['recall/01_dog'].simple_value == pytest.approx(0.9)
  assert values['f1/02_owl'].simple_value == 0
  assert values['false_positives/01_dog'].simple_value == 7
  assert values['true_negatives/00_cat'].simple_value == 14
  pixels = pixels_of(tmp_path)
  size = len(pixels) // 3
  corners = pixels[::size, ::size][:3, :3]
  expected = 255 - np.round(255 * confusion / confusion.sum(1)[:, None])
  np.testing.assert_array_equal(corners, expected)


def test_a_thousand_classes_have_small_files(tmp_path):
  rng = np.random.default_rng(0)
  confusion = matrix(
    rng.poisson(0.2, (1000, 1000)) + 50 * np.eye(1000, dtype=int)
  )
  names = [f'class {i}' for i in range(1000)]
  write(tmp_path, ('classes', 7, confusion, names))
  values = values_of(tmp_path)
  assert values['eval/f1'].histo.num == 1000
  assert values['eval/support'].histo.num == 1000
  assert not any(tag.startswith('f1/') for tag in values)
  pixels = pixels_of(tmp_path)  # each of two by two pairs of classes
  assert pixels.shape == (500, 500)
  assert np.diagonal(pixels).max() < 225
  assert pixels.mean() > 250
  size = sum(p.stat().st_size for p in (tmp_path / 'events').iterdir())
  assert size < 500_000
