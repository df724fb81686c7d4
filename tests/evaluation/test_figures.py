import io

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from alexnet_jax.evaluation import figures
from alexnet_jax.training import writers

NAMES = ['$x_1$', '<b>', 'Müller ß', 'a\nb', '$\\frac{$', 'bad\udcff', '日本']


def pixels(figure):
  """A figure as it is saved, uint8 [height, width, 3]."""
  content = io.BytesIO()
  figure.savefig(content)
  content.seek(0)
  return np.uint8(np.round(255 * matplotlib.image.imread(content)[..., :3]))


def texts(axes):
  return [text.get_text() for text in axes.texts]


def history():
  rows = []
  for step in range(10, 101, 10):
    learning_rate = 0.1 if step < 60 else 0.01
    losses = {'train/loss': 20 / step, 'train/top1': 0.5}
    rows.append({'step': step, **losses, 'learning_rate': learning_rate})
    rows.append({'step': step, 'eval/loss': 1.0, 'eval/top1': 0.4})
  return rows


@pytest.mark.parametrize('length', [0, 1, 51, 300])
def test_rolling_values_equal_a_loop(length):
  values = np.random.default_rng(0).normal(3, 2, length).cumsum()
  rows = [{'step': length, writers.STEP_LOSSES: values.tolist()}]
  steps, losses, means, deviations = figures.rolling_losses(rows)
  assert steps.tolist() == list(range(1, length + 1))
  assert losses.tolist() == values.tolist()
  for end in range(1, length + 1):
    part = values[max(0, end - figures.WINDOW) : end]
    mean = sum(part) / len(part)
    variance = sum((x - mean) ** 2 for x in part) / len(part)
    assert means[end - 1] == pytest.approx(mean)
    assert deviations[end - 1] == pytest.approx(variance**0.5, abs=1e-9)


def test_a_long_history_is_thinned():
  rows = [{'step': 200_000, writers.STEP_LOSSES: [1.0] * 200_000}]
  left, _ = figures.draw_step_losses(rows).axes
  assert 2_500 <= len(left.lines[0].get_xdata()) <= 5_000


def test_learning_rate_drops_are_found_and_marked():
  rows = history()
  assert figures.learning_rate_drops(rows) == [60]
  for axes in figures.draw_curves(rows).axes:
    training, validation, drop = axes.lines
    assert list(training.get_xdata()) == list(range(10, 101, 10))
    assert list(validation.get_xdata()) == list(range(10, 101, 10))
    assert list(drop.get_xdata()) == [60, 60]
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == [training.get_label(), 'validation']
  assert figures.draw_learning_rate(rows).axes[0].get_yscale() == 'log'
  smooth = enumerate([1, 0.9, 0.7, 0.5, 0.3, 0.1, 0.01])
  rows = [{'step': step, 'learning_rate': rate} for step, rate in smooth]
  assert figures.learning_rate_drops(rows) == []


def test_a_small_confusion_matrix_has_numbers_and_names(tmp_path):
  """Also those with dollars, line breaks or letters that no font has."""
  figure = figures.draw_confusion(np.arange(49).reshape(7, 7), NAMES)
  axes = figure.axes[0]
  assert texts(axes) == [str(n) for n in range(49)]
  wanted = ['$x_1$', '<b>', 'Müller ß', 'a b', '$\\frac{$', 'bad?', '日本']
  for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
    assert [label.get_text() for label in labels] == wanted
    assert not any(label.get_parse_math() for label in labels)
  images = np.zeros((7, 8, 8, 3), np.uint8)
  grid = figures.draw_grid(images, 3, 80, [(name,) for name in NAMES])
  for drawn in (figure, grid):  # warnings are errors
    figures.save(drawn, tmp_path / 'a.png')
    assert len(np.unique(matplotlib.image.imread(tmp_path / 'a.png'))) > 20


def test_a_single_mistake_among_a_thousand_classes_is_seen():
  """As a dot of its own color."""
  confusion = np.diag(np.random.default_rng(0).integers(10, 50, 1_000))
  confusion[500, 250] = 1
  names = [f'class {i}' for i in range(1_000)]
  figure = figures.draw_confusion(confusion, names)
  image, matrix = pixels(figure), figure.axes[0]
  assert not texts(matrix)
  x, y = matrix.transData.transform((250, 500)).astype(int)
  near = image[::-1][y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
  assert len(np.unique(near, axis=0)) == 2


def test_predictions_are_framed_green_and_red():
  """In the picture itself: one ring of three pixels around each image."""
  images = np.zeros((6, 80, 80, 3), np.uint8)
  captions = [('cat', ''), ('cat', 'not dog')] * 3
  colors = [figures.RIGHT, figures.WRONG] * 3
  figure = figures.draw_grid(images, 4, 80, captions, colors)
  picture = pixels(figure)
  assert picture.shape == (2 * (90 + 32), 4 * 90, 3)
  for number in range(6):
    top, left = number // 4 * 122, number % 4 * 90
    tile = picture[top : top + 90, left : left + 90]
    wanted = np.round(255 * np.array(matplotlib.colors.to_rgb(colors[number])))
    framed = (tile == wanted).all(-1)
    assert framed.sum() == 86**2 - 80**2
    assert framed[2:5, 2:-2].all()
    assert (tile[5:-5, 5:-5] == 0).all()
  assert texts(figure.axes[0])[:4] == ['cat', '', 'cat', 'not dog']


def test_filters_are_enlarged_without_smoothing():
  shape, scale = (11, 11, 3, 20), 6
  kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  kernel[..., 1] = 7  # a constant one is gray
  picture = pixels(figures.draw_filters(kernel))
  columns, end = min(16, shape[-1]), shape[0] * scale
  pitch = end + 4
  rows = -(-shape[-1] // columns)
  assert picture.shape == (rows * pitch, columns * pitch, 3)
  for number in range(shape[-1]):
    y, x = number // columns * pitch + 2, number % columns * pitch + 2
    tile = picture[y : y + end, x : x + end]
    small = tile[::scale, ::scale]
    np.testing.assert_array_equal(tile, small.repeat(scale, 0).repeat(scale, 1))
    one = kernel[..., number].astype(float)
    wanted = 255 * (one - one.min()) / (np.ptp(one) or 1)
    wanted = np.full_like(one, 128) if number == 1 else wanted
    np.testing.assert_allclose(small, wanted, atol=0.51)
