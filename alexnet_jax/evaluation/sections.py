"""The sections of a report: a measured run with its numbers and pictures."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import pathlib
import sys

import numpy as np
import scipy.sparse

from alexnet_jax import files
from alexnet_jax.data import augment, images, order
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import evaluate, figures, loading, page
from alexnet_jax.evaluation.page import Picture, Section, Table
from alexnet_jax.training import (
  accounting,
  build,
  measure,
  metrics,
  preprocess,
  state as state_lib,
  writers,
)

_MOST_CONFUSED = 25  # pairs
_MISTAKES = 20
_PREDICTIONS = 196  # images in the grid, 14 x 14
_MOST_IN_MATRIX = 1_000  # classes whose confusion.csv is a matrix
_AUGMENTED = 10  # training images before and after


@dataclasses.dataclass(frozen=True)
class MeasuredRun:
  """A network with its loaders, measured on the validation split."""

  run: loading.Network
  training: Loader | None  # None where other data is measured
  validation: Loader
  measured: measure.Measured

  def name(self, label: int) -> str:
    return self.run.class_names[label]

  def crops(self, indices: np.ndarray) -> list[np.ndarray]:
    """Reads validation images as the network sees them; they must decode."""
    size = self.run.config.data.crop_size
    squares = (self.validation.square(int(i))[0] for i in indices)
    return [images.center_crop(square, size) for square in squares]

  def evenly_chosen(self, count: int) -> np.ndarray:
    """Chooses at most `count` examples evenly from those that count."""
    there = np.flatnonzero(self.measured.predictions.counts)
    positions = np.linspace(0, len(there) - 1, min(count, len(there)))
    return there[positions.round().astype(int)]

  def worst_mistakes(self) -> np.ndarray:
    """Finds the wrong examples of the highest loss, the worst first."""
    seen = self.measured.predictions
    wrong = np.flatnonzero(seen.counts & (seen.classes[:, 0] != seen.labels))
    return wrong[np.argsort(-seen.loss[wrong], kind='stable')][:_MISTAKES]


def measure_run(
  run: loading.Network, tick: Callable[[], None] = lambda: None
) -> MeasuredRun:
  """Measures a network; `tick` is called for each batch."""
  validation = loading.make_eval_loader(run, 'validation')
  measured = evaluate.measure_all(run, validation, on_batch=lambda _: tick())
  training = None
  with contextlib.suppress(UserError):
    loader = build.make_loader(run.config, 'train')
    if loader.source.fingerprint == run.saved.data.fingerprint:
      training = loader
  return MeasuredRun(run, training, validation, measured)


def numbers(subject: MeasuredRun) -> dict:
  """Returns all numbers of a report, as a JSON object."""
  run, saved, name = subject.run, subject.run.saved, subject.name
  trained_on = saved.data.num_examples  # 0: imported weights
  step, seen = int(run.state.step), subject.measured.predictions
  pairs = metrics.most_confused(subject.measured.confusion, _MOST_CONFUSED)
  return {
    'step': step,
    'num_steps': saved.num_steps,
    'epochs': step * run.config.global_batch_size / max(1, trained_on),
    'training_examples': trained_on,
    'examples': int(seen.counts.sum()),
    'unreadable': len(subject.validation.unreadable),
    'parameters': state_lib.num_parameters(run.state),
    'metrics': subject.measured.values,
    'classes': class_rows(subject.measured.confusion, run.class_names),
    'most_confused': [
      {'true': name(true), 'predicted': name(predicted), 'examples': examples}
      for true, predicted, examples in pairs
    ],
    'mistakes': [
      {
        'true': name(seen.labels[index]),
        'predicted': name(seen.classes[index, 0]),
        'probability': float(seen.probabilities[index, 0]),
        'loss': float(seen.loss[index]),
        'file': subject.validation.source.describe(int(index)),
      }
      for index in subject.worst_mistakes()
    ],
  }


def class_rows(confusion: np.ndarray, class_names: list[str]) -> list[dict]:
  """Returns the measures of each class; its name is `class`; JSON."""
  measures = metrics.class_measures(confusion)
  keys = dict.fromkeys((*metrics.MEASURES, 'support', *measures))
  return [
    {'class': name} | {key: measures[key][i].item() for key in keys}
    for i, name in enumerate(class_names)
  ]


def augmented(subject: MeasuredRun, count: int) -> list[tuple]:
  """Returns the first training images before and after augmentation.

  (before: uint8 [size, size, channels], after: uint8 [crop, crop, channels],
  class name, what was changed apart from the crop) of each that decodes.
  """
  run, loader = subject.run, subject.training
  if loader is None:
    return []
  config = run.config.copy_and_resolve_references()
  # The first draws of a batch do not depend on how many follow.
  config.global_batch_size = min(count, config.global_batch_size)
  color = build.stored_lighting(config, run.workdir)
  batch = next(build.make_train_iter(config, loader, 1, run.mesh, color))
  positions = order.batch_positions(0, config.global_batch_size)
  count = loader.source.num_examples
  indices = order.examples_at(positions, count, config.seed)
  after = np.uint8(np.clip(np.round(preprocess.augment(batch)), 0, 255))
  return [
    (square[0], after[i], subject.name(square[1]), _change(batch, i))
    for i, index in enumerate(indices)
    if (square := loader.square(int(index))) is not None
  ]


def _change(batch, i):
  words = ['mirrored'] if 'flip' in batch and batch['flip'][i] else []
  for key in augment.Changes.__annotations__:
    if key in batch and key not in ('flip', 'scale'):
      words += [f'{level:+.0f}' for level in np.atleast_1d(batch[key][i])]
  return ' '.join(words)


@dataclasses.dataclass(frozen=True)
class Album:
  """The pictures and tables of a report, as files in its folder."""

  folder: pathlib.Path
  tick: Callable[[], None]  # called before each picture
  files: list[pathlib.Path] = dataclasses.field(default_factory=list)  # written

  def write_csv(self, name: str, rows: Sequence[Sequence]) -> None:
    """Writes a table as `name`.csv."""
    self.files.append(self.folder / f'{name}.csv')
    files.write_csv(self.files[-1], rows)

  def add(self, name: str, figure, alt: str, caption: str = '') -> Picture:
    """Writes a figure as `name`.png; see `page.Picture`."""
    self.tick()
    self.files.append(self.folder / f'{name}.png')
    return Picture(figures.save(figure, self.files[-1]), alt, caption)


def write_page(
  workdir: str, name: str, title: str, draw: Callable[[Album], tuple]
) -> dict:
  """Writes a page of its own into a folder of a run's.

  Args:
    workdir: the run's folder.
    name: of the folder.
    title: what comes before the run's name.
    draw: returns (result, sections).

  Returns:
    The result with page and files, their paths.

  Raises UserError if there are links where it is written.
  """
  path = pathlib.Path(workdir)
  files.refuse_links(path, (name,))
  album = Album(path / name, lambda: None)
  album.folder.mkdir(exist_ok=True)
  result, parts = draw(album)
  written = str(album.folder / 'index.html')
  page.write(written, f'{title} {path.resolve().name}', parts)
  for table in (table for part in parts for table in part.tables):
    page.show_table(table)
  print(f'page: {written}', file=sys.stderr)
  return {'page': written, 'files': [str(f) for f in album.files], **result}


def overview(numbers: dict, settings: dict, text: str) -> Section:
  """Makes the overview: what was trained, on what, and how good it is.

  Without a network `numbers` is empty, without a config `settings`, a flat one.
  """
  shown = {}
  if numbers:
    values = numbers['metrics']
    steps = numbers['step'], numbers['num_steps']
    shown = {
      'top-1': values['eval/top1'],
      'top-5': values['eval/top5'],
      'loss [nats]': values['eval/loss'],
      'macro F1': values['eval/macro_f1'],
      'validation images': numbers['examples'],
      'training images': numbers['training_examples'],
      'classes': len(numbers['classes']),
      'steps': ' of '.join(f'{n:,}' for n in steps if n) or 0,
      'epochs': f'{numbers["epochs"]:.2f}',
      'parameters': numbers['parameters'],
    }
    if numbers['unreadable']:
      shown['images not decoded'] = numbers['unreadable']
  rows = [(key, str(value)) for key, value in sorted(settings.items())]
  table = Table('Config', ('key', 'value'), rows, folded=True)
  tables = [table] if rows else []
  return Section('Overview', text, [*shown.items()], tables=tables)


_CURVES = {  # picture: (drawing, key of the rows that it needs, alt, caption)
  'step_losses': (
    figures.draw_step_losses,
    writers.STEP_LOSSES,
    'Training loss of each step with its rolling mean and deviation',
    f'Mean and standard deviation of the last {figures.WINDOW} steps.',
  ),
  'curves': (
    figures.draw_curves,
    'step',
    'Loss and top-1 of training and validation over the steps',
    'Training values are means since the log point before, with dropout and'
    ' augmentation; validation has neither. Dotted: the first log point after'
    ' the learning rate drops by more than half.',
  ),
  'learning_rate': (
    figures.draw_learning_rate,
    'step',
    'The learning rate over the steps',
  ),
  'speed': (
    figures.draw_speed,
    'images_per_second',
    'Images per second, and share of time waiting for data, over the steps',
    'Training alone, without evaluation and saving. Where time is spent waiting'
    ' for data, faster reading would train faster.',
  ),
}


def training(rows: list[dict], album: Album) -> list[Section]:
  """Makes the curves: losses, top-1, learning rate, speed."""
  pictures = [
    album.add(name, draw(rows), *text)
    for name, (draw, key, *text) in _CURVES.items()
    if any(key in row for row in rows)
  ]
  return [Section('Training', pictures=pictures)] if pictures else []


def times(seconds: dict[str, float]) -> list[Section]:
  """Makes the table of where time went, of an `accounting.Account`."""
  text = 'From the start of each process to the end of its training.'
  columns = 'spent on', 'seconds', 'share'
  rows = [(a, f'{b:.1f}', c) for a, b, c in accounting.table(seconds)]
  table = Table('Time of all processes of the run', columns, rows)
  return [Section('Time', text, tables=[table])] if rows else []


def network(subject: MeasuredRun, numbers: dict, album: Album) -> list[Section]:
  """Makes all sections about the network and its predictions, and CSV files."""
  return [
    _confusion(subject, numbers['most_confused'], album),
    _predictions(subject, album),
    _mistakes(subject, numbers['mistakes'], album),
    *_augmentation(subject, album),
    *first_layer(subject, album),
    _classes(numbers, album),
  ]


def _confusion(subject, pairs, album):
  names = subject.run.class_names
  counts = scipy.sparse.coo_array(subject.measured.confusion)
  if len(names) <= _MOST_IN_MATRIX:
    matrix = zip(names, counts.toarray().tolist(), strict=True)
    rows = [['true', *names], *([name, *row] for name, row in matrix)]
  else:  # a matrix of thousands of classes would be mostly zeros
    cells = zip(*counts.coords, counts.data, strict=True)
    rows = [('true', 'predicted', 'examples')]
    rows += [(subject.name(i), subject.name(j), n) for i, j, n in cells]
  album.write_csv('confusion', rows)
  picture = album.add(
    'confusion',
    figures.draw_confusion(counts, names),
    f'Confusion matrix of {len(names)} classes',
    'Rows are true classes, columns predicted ones; the right ones lie on the'
    ' diagonal.',
  )
  columns = ('true class', 'predicted class', 'images')
  table = Table('Most confused', columns, [tuple(p.values()) for p in pairs])
  text = '' if pairs else 'No image was taken for another class.'
  return Section('Confusion', text, (), [picture], [table] if pairs else [])


def _predictions(subject, album):
  chosen = subject.evenly_chosen(_PREDICTIONS)
  seen = subject.measured.predictions
  labels, classes = seen.labels[chosen], seen.classes[chosen, 0]
  right = labels == classes
  captions = [
    (subject.name(c), '' if c == label else f'not {subject.name(label)}')
    for label, c in zip(labels, classes, strict=True)
  ]
  colors = np.where(right, figures.RIGHT, figures.WRONG).tolist()
  picture = album.add(
    'predictions',
    figures.draw_grid(subject.crops(chosen), 14, 80, captions, colors),
    f'{len(chosen)} validation images with their predicted classes:'
    f' {right.sum()} right, {(~right).sum()} wrong',
    'Chosen evenly over the split. Green: right; red: wrong, with the true'
    ' class below.',
  )
  return Section('Predictions', pictures=[picture])


def _mistakes(subject, mistakes, album):
  if not mistakes:
    return Section('Worst mistakes', 'There is none.')
  captions = [
    (
      f'{number}: {mistake["probability"]:.0%} sure',
      mistake['predicted'],
      f'not {mistake["true"]}',
    )
    for number, mistake in enumerate(mistakes, 1)
  ]
  crops, colors = subject.crops(subject.worst_mistakes()), [figures.WRONG]
  picture = album.add(
    'mistakes',
    figures.draw_grid(crops, 10, 112, captions, colors * len(crops)),
    f'The {len(mistakes)} wrong images of the highest loss',
    'The wrong images of the highest loss, numbered as in the table.',
  )
  columns = ('number', 'true class', 'predicted class', 'its probability')
  rows = [(i, *mistake.values()) for i, mistake in enumerate(mistakes, 1)]
  table = Table('These images', (*columns, 'loss [nats]', 'image'), rows)
  return Section('Worst mistakes', '', (), [picture], [table])


def _augmentation(subject, album):
  rows = augmented(subject, _AUGMENTED)
  if not rows:
    return []
  before, after, names, changes = zip(*rows, strict=True)
  captions = [(text,) for text in (*names, *changes)]
  picture = album.add(
    'augmentation',
    figures.draw_grid([*before, *after], len(rows), 112, captions),
    f'{len(rows)} training images before and after augmentation',
    'Above: the resized squares of the first training images. Below: the same'
    ' as the first training step saw them, cropped and changed as they say'
    ' (what is added, of 255: a number, or three for red, green and blue).',
  )
  return [Section('Augmentation', pictures=[picture])]


def first_layer(subject: MeasuredRun, album: Album) -> list[Section]:
  """Makes the filters of the first layer, by tower; figure 3 of the paper."""
  kernel = subject.run.state.eval_params['conv1']['kernel']
  height, width, _, count = kernel.shape
  # A tower is what a group of the second convolution sees of the first.
  towers = max(subject.run.config.model.groups[1:2], default=1)
  pictures = []
  for tower, part in enumerate(np.split(np.asarray(kernel), towers, 3), 1):
    which = f' of tower {tower}' * (towers > 1)
    text = f'{count // towers} filters{which} of {height} x {width} pixels'
    name = f'filters_{tower}' if towers > 1 else 'filters'
    figure = figures.draw_filters(part)
    picture = album.add(name, figure, text, f'{text}, each in its own range.')
    pictures.append(picture)
  return [Section('First layer', pictures=pictures)]


def averages_table(values: dict) -> Table:
  """Makes the table of averaged measures; see `measure.Measured`."""
  rows = [
    (name, *(values[f'eval/{name}_{m}'] for m in metrics.MEASURES))
    for name in metrics.AVERAGES
  ]
  return Table('Averages', ('average', 'precision', 'recall', 'F1'), rows)


def classes_table(title: str, rows: list[dict]) -> Table:
  """Makes the table of classes; see `class_rows`."""
  columns = ('class', 'precision', 'recall', 'F1', 'support')
  columns += ('TP', 'FP', 'FN', 'TN')
  cells = [tuple(row.values()) for row in rows]
  return Table(title, columns, cells, sortable=True)


def _classes(numbers, album):
  classes = numbers['classes']
  rows = [list(classes[0]), *(row.values() for row in classes)]
  album.write_csv('classes', rows)
  text = (
    'Macro averages are means over the classes, weighted ones count a class by'
    ' its images, and micro ones are top-1. TP, FP, FN and TN are true and'
    ' false positives and negatives. A click on a column sorts.'
  )
  averages = averages_table(numbers['metrics'])
  every = classes_table('Every class', classes)
  return Section('Classes', text, tables=[averages, every])
