import io
import json

import numpy as np
from PIL import Image
import pytest
from tensorboardX.proto import event_pb2

from alexnet_jax.training import metrics, writers


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
  # Checkpoint 4 was saved before the evaluation at step 4 ended.
  write(tmp_path, step=4, evaluated_step=2)
  assert writers.read_rows(tmp_path) == found[:3]
  # TensorBoard drops what the first file has from step 5 on.
  starts = [e.step for e in read_events(tmp_path) if e.session_log.status]
  assert starts == [1, 5]


@pytest.mark.parametrize(
  'end',
  [
    *(b'{"step": 2, "a', b'3\n', b'{"note": 1}\n', b'{"step": 2}\xff\n'),
    *(b'[' * 10**5, b'{"step": true}', b'{"step": 9999999999}'),
    *(b'{"step": 2, "eval/top1": %s}' % v for v in (b'[1]', b'"1"', b'NaN')),
    *(
      b'{"step": 2, "train/step_losses": %s}' % value
      for value in (b'3', b'["a"]', b'[1, 2, 3]', b'[NaN]')
    ),
  ],
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
  values = values_of(tmp_path)
  assert values[7, 'eval/top1'].simple_value == 0.25
  histogram = values[7, 'params/conv1'].histo
  assert (histogram.num, histogram.max) == (100, 99)
  assert list(histogram.bucket) == pytest.approx([25] * 4)


def test_the_loss_of_every_step(tmp_path):
  """Those after the last log point come again in a longer run."""
  writer = writers.MetricWriter(tmp_path, step=0, evaluated_step=0)
  writer.step_losses(12, [3.0, 2.0, 1.0])
  writer.step_losses(13, [0.5], last=True)
  writer.step_losses(13, [], last=True)
  writer.close()
  values = values_of(tmp_path)
  losses = [(step, value.simple_value) for (step, _), value in values.items()]
  assert losses == [(10, 3.0), (11, 2.0), (12, 1.0), (13, 0.5)]
  assert len(writers.read_rows(tmp_path)) == 2
  write(tmp_path, ('step_losses', 14, [0.5, 0.25]), step=13)
  assert writers.read_rows(tmp_path) == [
    {'step': 12, 'train/step_losses': [3.0, 2.0, 1.0]},
    {'step': 14, 'train/step_losses': [0.5, 0.25]},
  ]


def write_classes(workdir, counts, names):
  """Returns ({tag: value}, pixels of the picture) of a confusion matrix."""
  labels, predicted = np.nonzero(counts)
  number = counts[labels, predicted]
  pairs = np.repeat(labels, number), np.repeat(predicted, number)
  confusion = metrics.confusion_matrix(*pairs, len(names))
  write(workdir, ('classes', 7, confusion, names))
  values = {tag: value for (_, tag), value in values_of(workdir).items()}
  picture = values['eval/confusion_picture'].image.encoded_image_string
  return values, np.asarray(Image.open(io.BytesIO(picture)).convert('L'))


def test_measures_of_the_classes(tmp_path):
  counts = np.array([[8, 2, 0], [1, 9, 0], [0, 5, 0]])
  values, pixels = write_classes(tmp_path, counts, ['cat', 'dog', 'owl'])
  for tag, value in {
    'precision/00_cat': 8 / 9,
    'recall/01_dog': 0.9,
    'f1/02_owl': 0,
    'false_positives/01_dog': 7,
    'true_negatives/00_cat': 14,
  }.items():
    assert values[tag].simple_value == pytest.approx(value)
  size = len(pixels) // 3
  expected = 255 - np.round(255 * counts / counts.sum(1)[:, None])
  np.testing.assert_array_equal(pixels[::size, ::size][:3, :3], expected)


def test_a_thousand_classes_have_small_files(tmp_path):
  rng = np.random.default_rng(0)
  counts = rng.poisson(0.2, (1000, 1000)) + 50 * np.eye(1000, dtype=int)
  names = [f'class {i}' for i in range(1000)]
  values, pixels = write_classes(tmp_path, counts, names)
  assert values['eval/f1'].histo.num == 1000
  assert not any(tag.startswith('f1/') for tag in values)
  assert pixels.shape == (500, 500)  # each of two by two pairs of classes
  assert np.diagonal(pixels).max() < 225
  assert pixels.mean() > 250
  size = sum(p.stat().st_size for p in (tmp_path / 'events').iterdir())
  assert size < 500_000
