import io
import json

import numpy as np
from PIL import Image
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


def read_values(workdir):
  """[(step, value)] of the event files, without the records' framing."""
  values = []
  for path in sorted((workdir / 'events').iterdir()):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], 'little')
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      values += [(event.step, value) for value in event.summary.value]
      data = data[16 + length :]
  return values


def values_of(workdir):
  return {value.tag: value for _, value in read_values(workdir)}


def test_event_files_hold_scalars_and_histograms(tmp_path):
  writer = open_writer(tmp_path)
  writer.scalars(7, {'eval/top1': 0.25})
  counts, edges = np.histogram(np.arange(100.0), bins=4)
  writer.histogram(7, 'params/conv1', counts, edges)
  writer.close()
  assert {step for step, _ in read_values(tmp_path)} == {7}
  values = values_of(tmp_path)
  assert values['eval/top1'].simple_value == 0.25
  histogram = values['params/conv1'].histo
  assert histogram.num == 100
  assert list(histogram.bucket) == pytest.approx([25] * 4)
  assert histogram.max == 99


def test_the_loss_of_every_step(tmp_path):
  writer = open_writer(tmp_path)
  writer.step_losses(12, [3.0, 2.0, 1.0])
  writer.close()
  assert writers.read_rows(tmp_path) == [
    {'step': 12, 'train/step_losses': [3.0, 2.0, 1.0]}
  ]
  events = [(step, value.simple_value) for step, value in read_values(tmp_path)]
  assert events == [(10, 3.0), (11, 2.0), (12, 1.0)]


def test_the_losses_after_the_last_log_point_come_again(tmp_path):
  writer = open_writer(tmp_path)
  writer.step_losses(4, [4.0, 3.0])
  writer.step_losses(5, [2.0], last=True)
  writer.step_losses(5, [], last=True)
  writer.close()
  rows = writers.read_rows(tmp_path)
  assert [row['train/step_losses'] for row in rows] == [[4.0, 3.0], [2.0]]
  writer = open_writer(tmp_path, step=5)
  writer.step_losses(6, [2.0, 1.0])
  writer.close()
  rows = writers.read_rows(tmp_path)
  assert [row['train/step_losses'] for row in rows] == [[4.0, 3.0], [2.0, 1.0]]


def test_measures_of_the_classes(tmp_path):
  confusion = np.array([[8, 2, 0], [1, 9, 0], [0, 5, 0]])
  writer = open_writer(tmp_path)
  writer.classes(7, confusion, ['cat', 'dog', 'owl'])
  writer.close()
  values = values_of(tmp_path)
  assert values['precision/00_cat'].simple_value == pytest.approx(8 / 9)
  assert values['recall/01_dog'].simple_value == pytest.approx(0.9)
  assert values['f1/02_owl'].simple_value == 0
  assert values['false_positives/01_dog'].simple_value == 7
  assert values['true_negatives/00_cat'].simple_value == 14
  tensor = values['eval/confusion'].tensor
  shape = [dim.size for dim in tensor.tensor_shape.dim]
  stored = np.frombuffer(tensor.tensor_content, '<i4').reshape(shape)
  np.testing.assert_array_equal(stored, confusion)
  picture = values['eval/confusion_picture'].image
  pixels = np.asarray(
    Image.open(io.BytesIO(picture.encoded_image_string)).convert('L')
  )
  size = len(pixels) // 3
  corners = pixels[::size, ::size][:3, :3]
  expected = 255 - np.round(255 * confusion / confusion.sum(1)[:, None])
  np.testing.assert_array_equal(corners, expected)


def test_many_classes_have_histograms_and_no_scalars(tmp_path):
  confusion = np.eye(150, dtype=int) * 3
  writer = open_writer(tmp_path)
  writer.classes(7, confusion, [f'class {i}' for i in range(150)])
  writer.close()
  values = values_of(tmp_path)
  assert values['eval/f1'].histo.num == 150
  assert values['eval/support'].histo.num == 150
  assert not any(tag.startswith('f1/') for tag in values)
