"""The sections of a report's page: each makes its pictures and tables."""

from collections.abc import Callable
import pathlib

import numpy as np

from alexnet_jax.evaluation import figures
from alexnet_jax.evaluation import image_figures
from alexnet_jax.evaluation import measured_run
from alexnet_jax.evaluation.measured_run import MeasuredRun
from alexnet_jax.evaluation.page import Picture
from alexnet_jax.evaluation.page import Section
from alexnet_jax.evaluation.page import Table
from alexnet_jax.training import metrics

PREDICTIONS = 196  # images in the grid, 14 x 14
AUGMENTED = 10  # training images before and after
_MISTAKES = {
  'true': 'true class',
  'predicted': 'predicted class',
  'probability': 'its probability',
  'loss': 'loss [nats]',
  'file': 'image',
}


class Album:
  """The pictures of a report: files in its folder, and parts of its page.

  Attributes:
    files: paths of what was written.
  """

  def __init__(self, folder: pathlib.Path, tick: Callable[[], None]):
    """`tick` is called before each picture."""
    self.folder = folder
    self.files = []
    self._tick = tick

  def add(self, name: str, figure, alt: str, caption: str = '') -> Picture:
    """Writes a figure as `name`.png; see `page.Picture`."""
    self._tick()
    self.files.append(self.folder / f'{name}.png')
    return Picture(figures.save(figure, self.files[-1]), alt, caption)


def overview(numbers: dict, settings: dict, data: str, missing: str) -> Section:
  """Makes the overview: what was trained, on what, and how good it is.

  Args:
    numbers: see `measured_run.numbers`; empty without a network.
    settings: the flat config; empty if it is not known.
    data: name of the validation split.
    missing: what the report lacks, for people.
  """
  shown, tables = [], []
  if numbers:
    values = numbers['metrics']
    shown = [
      ('accuracy (top-1)', values['eval/top1']),
      ('top-5 accuracy', values['eval/top5']),
      ('loss [nats]', values['eval/loss']),
      ('macro F1', values['eval/macro_f1']),
      ('validation images', numbers['examples']),
      ('training images', numbers['training_examples']),
      ('classes', len(numbers['classes'])),
      ('steps', numbers['step']),
      ('epochs', f'{numbers["epochs"]:.2f}'),
      ('parameters', numbers['parameters']),
      ('forward FLOP', numbers['forward_flops_per_image']),
    ]
    if numbers['unreadable']:
      shown.append(('images not decoded', numbers['unreadable']))
    tables.append(
      Table(
        'Layers',
        ('layer', 'output', 'parameters', 'forward FLOP'),
        [tuple(row.values()) for row in numbers['layers']],
        folded=True,
      )
    )
  if settings:
    rows = [(key, str(value)) for key, value in sorted(settings.items())]
    tables.append(Table('Config', ('key', 'value'), rows, folded=True))
  text = f'Measured on {data}. ' if data else ''
  return Section('Overview', (text + missing).strip(), shown, (), tables)


def training(rows: list[dict], album: Album) -> list[Section]:
  """Makes the curves: losses, accuracy, learning rate, speed."""
  if not rows:
    return []
  sections = []
  if len(figures.step_losses(rows)[0]):
    picture = album.add(
      'step_losses',
      figures.draw_step_losses(rows),
      'Training loss of each step with its rolling mean and deviation',
      f'Mean and standard deviation of the last {figures.WINDOW} steps.',
    )
    sections.append(Section('Loss of each step', pictures=[picture]))
  curves = album.add(
    'curves',
    figures.draw_curves(rows),
    'Loss and top-1 of training and validation over the steps',
    'Training values are means since the log point before, with dropout and'
    ' augmentation; validation has neither.',
  )
  learning_rate = album.add(
    'learning_rate',
    figures.draw_learning_rate(rows),
    'The learning rate over the steps',
    'Learning rate; dotted where it drops by more than half.',
  )
  pictures = [curves, learning_rate]
  sections.append(Section('Training and validation', pictures=pictures))
  if any('images_per_second' in row for row in rows):
    picture = album.add(
      'speed',
      figures.draw_speed(rows),
      'Images per second, and share of time waiting for data, over the steps',
      'Training alone, without evaluation and saving. Where time is spent'
      ' waiting for data, faster reading would train faster.',
    )
    sections.append(Section('Speed', pictures=[picture]))
  return sections


def network(subject: MeasuredRun, numbers: dict, album: Album) -> list[Section]:
  """Makes all sections about the network and its predictions."""
  return [
    _confusion(subject, numbers, album),
    _predictions(subject, album),
    _mistakes(subject, numbers, album),
    *_augmentation(subject, album),
    *_filters(subject, album),
    _classes(numbers),
  ]


def _confusion(subject, numbers, album):
  names = subject.run.class_names
  picture = album.add(
    'confusion',
    figures.draw_confusion(subject.measured.confusion, names),
    f'Confusion matrix of {len(names)} classes',
    'Rows are true classes, columns predicted ones; the right ones lie on the'
    ' diagonal.',
  )
  pairs = Table(
    'Most confused',
    ('true class', 'predicted class', 'images'),
    [tuple(pair.values()) for pair in numbers['most_confused']],
  )
  text = '' if pairs.rows else 'No image was taken for another class.'
  return Section(
    'Confusion', text, (), [picture], [pairs] if pairs.rows else []
  )


def _predictions(subject, album):
  chosen = measured_run.evenly_chosen(subject, PREDICTIONS)
  predictions = subject.measured.predictions
  labels, classes = predictions.labels[chosen], predictions.classes[chosen, 0]
  right = labels == classes
  figure = image_figures.draw_predictions(
    subject.crops(chosen),
    [subject.name(label) for label in labels],
    [subject.name(label) for label in classes],
    right,
  )
  picture = album.add(
    'predictions',
    figure,
    f'{len(chosen)} validation images with their predicted classes:'
    f' {right.sum()} right, {(~right).sum()} wrong',
    'Chosen evenly over the split. Green: right; red: wrong, with the true'
    ' class below.',
  )
  return Section('Predictions', pictures=[picture])


def _mistakes(subject, numbers, album):
  mistakes = numbers['mistakes']
  if not mistakes:
    return Section('Worst mistakes', 'There is none.')
  picture = album.add(
    'mistakes',
    image_figures.draw_mistakes(
      subject.crops(measured_run.worst_mistakes(subject)),
      [mistake['true'] for mistake in mistakes],
      [mistake['predicted'] for mistake in mistakes],
      [mistake['probability'] for mistake in mistakes],
    ),
    f'The {len(mistakes)} wrong images of the highest loss',
    'The wrong images of the highest loss, numbered as in the table.',
  )
  table = Table(
    'These images',
    ('number', *_MISTAKES.values()),
    [
      (number, *(mistake[key] for key in _MISTAKES))
      for number, mistake in enumerate(mistakes, 1)
    ],
  )
  return Section('Worst mistakes', '', (), [picture], [table])


def _augmentation(subject, album):
  rows = measured_run.augmented(subject, AUGMENTED)
  if not rows:
    return []
  picture = album.add(
    'augmentation',
    image_figures.draw_augmentation(*zip(*rows, strict=True)),
    f'{len(rows)} training images before and after augmentation',
    'Above: the resized squares of the first training images. Below: the same'
    ' as the first training step saw them, cropped and changed as they say'
    ' (a number: brightness added, of 255; three: red, green and blue).',
  )
  return [Section('Augmentation', pictures=[picture])]


def _filters(subject, album):
  kernel = subject.run.state.eval_params.get('conv1', {}).get('kernel')
  if kernel is None:
    return []
  height, width, _, count = kernel.shape
  picture = album.add(
    'filters',
    image_figures.draw_filters(np.asarray(kernel)),
    f'The {count} filters of the first layer',
    f'{count} filters of {height} x {width} pixels, each in its own range.',
  )
  return [Section('First layer', pictures=[picture])]


def averages_table(values: dict) -> Table:
  """Makes the table of averaged measures; see `measure.Measured`."""
  return Table(
    'Averages',
    ('average', 'precision', 'recall', 'F1'),
    [
      (name, *(values[f'eval/{name}_{m}'] for m in metrics.MEASURES))
      for name in metrics.AVERAGES
    ],
  )


def classes_table(title: str, rows: list[dict]) -> Table:
  """Makes the table of classes; see `measured_run.class_rows`."""
  return Table(
    title,
    ('class', 'precision', 'recall', 'F1', 'support', 'TP', 'FP', 'FN', 'TN'),
    [tuple(row.values()) for row in rows],
    sortable=True,
  )


def _classes(numbers):
  text = (
    'Macro averages are means over the classes, weighted ones count a class by'
    ' its images, and micro ones are the accuracy. TP, FP, FN and TN are true'
    ' and false positives and negatives. A click on a column sorts.'
  )
  tables = [
    averages_table(numbers['metrics']),
    classes_table('Every class', numbers['classes']),
  ]
  return Section('Classes', text, tables=tables)
