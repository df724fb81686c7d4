"""The paper's figures and tables, from a run of one's own.

python -m alexnet_jax.evaluation.paper --workdir DIR [--ensemble DIR ...]
[--ablations DIR ...]

The paper is Krizhevsky, Sutskever and Hinton 2012; its numbers are on ImageNet
with ten crops, where nothing else is said.
"""

import argparse
from collections.abc import Iterable
import dataclasses
import math
import pathlib
import re
import statistics
import sys

import numpy as np

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError

FOLDER = 'paper'  # in the folder of the run
_DESCRIPTION = """\
Draws figures 3 and 4 and tables 1 and 2 of the paper from a run: the kernels of
the first layer, the five best classes of eight validation images, the training
images nearest to five of them, and the errors with one crop and with ten, of an
ensemble too. On ImageNet the published numbers stand beside them. With
--ablations it compares runs that differ from this one in a key, over their
seeds."""
_ANSWERED, _QUERIES, _NEAREST = 8, 5, 6  # images of figure 4
_SYNSET = re.compile(r'n\d{8}')

# (what, top-1 error, top-5 error) on the validation set of ILSVRC-2012.
_ONE_CROP = (
  ('source release, net 145, one crop', 'about 42.5-42.8%', 'about 19.5-19.8%'),
  ('Caffe bvlc_alexnet, one crop', '42.9%', '19.8%'),
  ('Caffe caffenet, one crop', '42.6%', '19.6%'),
)
_TEN_CROPS = (
  ('paper, 1 CNN, ten crops', '40.7%', '18.2%'),
  ('source release, net 145, ten crops', '40.664%', '18.210%'),
)
_ENSEMBLES = (
  ('paper, 5 CNNs, ten crops', '38.1%', '16.4%'),
  ('paper, 7 CNNs, two of them trained on ImageNet 2011', '36.7%', '15.4%'),
)
# What a change of a key cost them; points of error, top-1 and top-5.
_PUBLISHED = {
  'model.norm': 'no LRN: +1.370, +1.152 (source release; paper 1.4, 1.2)',
  'model.pool_size': (
    'no overlap: +0.394, +0.300 (source release; paper 0.4, 0.3)'
  ),
  'data.pca_lighting': 'no lighting: over +1 (top-1; paper)',
  'model.activation': (
    'tanh: six times as long to 25% training error (paper; four layers,'
    ' CIFAR-10)'
  ),
  'model.dropout': 'no dropout: substantial overfitting (paper, no number)',
  'model.groups': (
    'one GPU: +1.7, +1.2 (paper, but with half the kernels in each convolution)'
  ),
}


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.paper', description=_DESCRIPTION
  )
  more = {'nargs': '+', 'default': [], 'type': cli.path}
  text = 'other networks, whose probabilities are averaged with those of this'
  add = parser.add_argument
  add('--ensemble', metavar='DIR[:CHECKPOINT]', help=text, **more)
  text = 'runs that differ in a key or the seed; they must be done'
  add('--ablations', metavar='DIR', help=text, **more)
  text = f'folder of the page (default: {FOLDER} in that of the run)'
  add('--out', default='', type=cli.path, metavar='DIR', help=text)
  cli.add_run(parser)
  cli.add_data_path(parser)
  cli.add_json(parser)
  arguments = parser.parse_args(argv)
  return cli.run(lambda: _work(arguments), json_output=arguments.json)


def _work(arguments):
  """Writes the page; returns the command's result."""
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation import sections

  workdir = pathlib.Path(arguments.workdir)
  compared = []
  if arguments.ablations:  # before what takes minutes
    compared = compare_ablations(arguments.workdir, arguments.ablations)
  subject = sections.load(
    str(workdir), arguments.checkpoint, arguments.data_path, lambda: None
  )
  folder = pathlib.Path(arguments.out or workdir / FOLDER)
  album = sections.Album(folder, lambda: None)
  result, parts = draw(subject, album, arguments.ensemble)
  if compared:
    parts.append(_ablations_section(compared))
  title = f'The figures and tables of the paper, from {workdir.resolve().name}'
  page.write(folder / 'index.html', page.render(title, parts))
  for table in (table for part in parts for table in part.tables):
    page.show_table(table)
  print(f'page: {folder / "index.html"}', file=sys.stderr)
  return {
    'page': str(folder / 'index.html'),
    'files': [str(file) for file in album.files],
    'step': int(subject.run.state.step),
    **result,
    'ablations': compared,
  }


def draw(subject, album, members=()) -> tuple[dict, list]:
  """Draws the figures and tables.

  Args:
    subject: a `sections.MeasuredRun`.
    album: a `sections.Album`, whose folder is made where it is not there.
    members: other runs of an ensemble, `DIR` or `DIR:CHECKPOINT`.

  Returns:
    ({errors: {one_crop, ten_crops, ensemble}, answers, nearest}: JSON; sections
    of a page).
  """
  album.folder.mkdir(parents=True, exist_ok=True)
  errors = _errors(subject, members)
  answers, left = _answers(subject, album)
  found, right = _neighbors(subject, album)
  parts = [_kernels(subject, album), left, right, _tables(subject, errors)]
  result = {'errors': errors, 'answers': answers, 'nearest': found}
  return result, [part for part in parts if part]


def _errors(subject, members):
  """Returns {which: [top-1 error, top-5 error]}, shares."""
  from alexnet_jax.evaluation import ensemble
  from alexnet_jax.evaluation import evaluate
  from alexnet_jax.evaluation import loading

  run = subject.run
  place = str(run.workdir), str(int(run.state.step)), run.data_path
  values = {'one_crop': subject.measured.values}
  if members:
    names = [f'{place[0]}:{place[1]}', *members]
    options = {'split': 'validation', 'crops': 10, 'data_path': place[2]}
    joint = ensemble.measure(argparse.Namespace(workdirs=names, **options))
    values |= {'ten_crops': joint['members'][0], 'ensemble': joint}
  else:
    ten = loading.load_network(*place, crops=10)
    loading.warn_of_crops(ten, 10)
    measured = evaluate.measure_all(ten, subject.validation, 10)
    values['ten_crops'] = measured.values
  return {
    which: [1 - each['eval/top1'], 1 - each['eval/top5']]
    for which, each in values.items()
  } | ({'networks': 1 + len(members)} if members else {})


def _tables(subject, errors):
  from alexnet_jax.evaluation.page import Section
  from alexnet_jax.evaluation.page import Table

  names = subject.run.class_names
  is_imagenet = len(names) == 1000 and all(map(_SYNSET.fullmatch, names))
  rows = {
    which: (f'this run, {text}', *(f'{e:.1%}' for e in errors[which]))
    for which, text in (
      ('one_crop', '1 CNN, one crop'),
      ('ten_crops', '1 CNN, ten crops'),
      ('ensemble', f'{errors.get("networks")} CNNs, ten crops'),
    )
    if which in errors
  }
  first = [rows['one_crop'], rows['ten_crops']]
  second = [rows['ten_crops'], *[rows[w] for w in ('ensemble',) if w in rows]]
  text = 'The published numbers are on ImageNet, so they are not here.'
  if is_imagenet:
    text = 'Published: errors on the validation set of ILSVRC-2012.'
    first += [*_ONE_CROP, *_TEN_CROPS]
    second += [_TEN_CROPS[0], *_ENSEMBLES]
  columns = ('model', 'top-1 error', 'top-5 error')
  tables = [
    Table('Table 1: one network', columns, first),
    Table('Table 2: one network and several', columns, second),
  ]
  count = int(subject.measured.predictions.counts.sum())
  text = f'Errors on {count:,} validation images. {text}'
  return Section('Tables 1 and 2', text, tables=tables)


def _kernels(subject, album):
  """Makes figure 3: the kernels of the first layer, by tower."""
  from alexnet_jax.evaluation import figures
  from alexnet_jax.evaluation.page import Section

  kernel = subject.run.state.eval_params.get('conv1', {}).get('kernel')
  if kernel is None:
    return None
  kernel, groups = np.asarray(kernel), subject.run.config.model.groups
  # A tower is what the groups of the convolutions after it see of it.
  towers = max(groups[1:2], default=1)
  pictures, first = [], 1
  for number, part in enumerate(np.split(kernel, towers, 3), 1):
    last = first + part.shape[3] - 1
    text = f'Kernels {first} to {last}'
    text += f', of tower {number}.' if towers > 1 else '.'
    name = f'figure_3_tower_{number}' if towers > 1 else 'figure_3'
    alt = f'{text[:-1]}, of {part.shape[0]} x {part.shape[1]} pixels'
    pictures.append(album.add(name, figures.draw_filters(part), alt, text))
    first = last + 1
  text = 'The kernels of the first layer, each in its own range.'
  return Section('Figure 3', text, pictures=pictures)


def _answers(subject, album):
  """Makes the left of figure 4: ([answers], section)."""
  from alexnet_jax.evaluation.page import Section

  seen, chosen = subject.measured.predictions, subject.evenly_chosen(_ANSWERED)
  rows = [
    {
      'image': subject.validation.source.describe(int(index)),
      'class': subject.name(seen.labels[index]),
      'best': [
        (subject.name(label), float(probability))
        for label, probability in zip(
          seen.classes[index], seen.probabilities[index], strict=True
        )
      ],
    }
    for index in chosen
  ]
  picture = album.add(
    'figure_4_left',
    _draw_answers(subject.crops(chosen), rows),
    f'{len(rows)} validation images with the probabilities of their best classes',
    'The true class is below the image; its bar is green, if it is among the'
    ' five best. Chosen evenly over the split.',
  )
  return rows, Section('Figure 4, left', pictures=[picture])


def _draw_answers(images, rows):
  """Draws images with bars of their five best classes."""
  from matplotlib.figure import Figure

  from alexnet_jax.evaluation import figures

  lines = -(-len(rows) // 4)
  figure = Figure(figsize=(11, 4.6 * lines), dpi=110, layout='constrained')
  axes = figure.subplots(2 * lines, 4, height_ratios=[5, 3] * lines)
  for panel in axes.flat:
    panel.set_axis_off()
  for number, (image, row) in enumerate(zip(images, rows, strict=True)):
    top = number // 4 * 2
    axes[top, number % 4].imshow(image)
    bars = axes[top + 1, number % 4]
    title = figures.shortened(row['class'], 28)
    bars.set_title(title, fontsize=11, weight='bold', parse_math=False)
    names, values = zip(*row['best'], strict=True)
    is_right = [name == row['class'] for name in names]
    colors = np.where(is_right, '#8fce9c', '#a9c8e6').tolist()
    bars.barh(range(len(names)), values, color=colors)
    for place, name in enumerate(names):
      text = figures.shortened(name, 28)
      bars.text(0.02, place, text, va='center', fontsize=9, parse_math=False)
    bars.set(xlim=(0, 1), ylim=(4.6, -0.6))
  return figure


def _neighbors(subject, album):
  """Makes the right of figure 4: ([nearest of each query], section)."""
  from alexnet_jax.data import images
  from alexnet_jax.evaluation import features
  from alexnet_jax.evaluation import figures
  from alexnet_jax.evaluation.page import Section

  training, run = subject.training, subject.run
  if training is None:
    return [], Section('Figure 4, right', 'The training images are not here.')
  layer = [*features.layer_shapes(run)][-2]  # the head is the last
  chosen = subject.evenly_chosen(_QUERIES)
  squares = [subject.validation.square(int(index))[0] for index in chosen]
  queries = features.of_images(run, squares, layer)
  batches = (
    (counts, outputs[layer])
    for _, counts, outputs in features.layer_outputs(run, training, [layer])
  )
  distances, indices = find_nearest(queries, batches, _NEAREST)
  size = run.config.data.crop_size
  tiles, captions, colors, found = [], [], [], []
  labels = subject.measured.predictions.labels
  for query, image, *near in zip(
    chosen, subject.crops(chosen), indices, distances, strict=True
  ):
    tiles.append(image)
    name = subject.name(labels[query])
    captions.append((name, 'query'))
    colors.append('black')
    for index, distance in zip(*near, strict=True):
      square, label = training.square(int(index))
      tiles.append(images.center_crop(square, size))
      captions.append((subject.name(label), f'{distance:.4g}'))
      is_same = subject.name(label) == name
      colors.append(figures.RIGHT if is_same else figures.WRONG)
    source = training.source
    found.append(
      {
        'image': subject.validation.source.describe(int(query)),
        'nearest': [source.describe(int(index)) for index in near[0]],
        'distances': near[1].tolist(),
      }
    )
  columns = 1 + indices.shape[1]
  picture = album.add(
    'figure_4_right',
    figures.draw_grid(tiles, columns, 120, captions, colors),
    f'{len(chosen)} validation images, and the training images nearest to them',
    f'First column: validation images. Then the {columns - 1} training images'
    f' whose outputs of {layer} are nearest, with their Euclidean distance;'
    ' green: of the same class.',
  )
  return found, Section('Figure 4, right', pictures=[picture])


def find_nearest(
  queries: np.ndarray, batches: Iterable[tuple], count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the rows that are nearest to each query by Euclidean distance.

  Args:
    queries: float32 [q, ...].
    batches: pairs (whether a row counts: bool [b], rows: float32 [b, ...]).
    count: rows to find for a query, or as many as there are.

  Returns:
    (distances float64 [q, n], numbers of the rows, uncounted ones included,
    int64 [q, n]), the nearest first.
  """
  distances = np.zeros((len(queries), 0))
  indices, first = np.zeros((len(queries), 0), np.int64), 0
  for counts, rows in batches:
    numbers, rows = first + np.flatnonzero(counts), rows[counts]
    first += len(counts)
    gaps = [np.reshape(rows - query, (len(rows), -1)) for query in queries]
    new = np.array([np.linalg.norm(np.float64(gap), axis=1) for gap in gaps])
    distances = np.concatenate([distances, new], 1)
    indices = np.concatenate(
      [indices, np.repeat(numbers[None], len(queries), 0)], 1
    )
    order = np.argsort(distances, 1, kind='stable')[:, :count]
    distances = np.take_along_axis(distances, order, 1)
    indices = np.take_along_axis(indices, order, 1)
  return distances, indices


def compare_ablations(workdir: str, others: Iterable[str]) -> list[dict]:
  """Compares runs that are done with others that differ in keys or the seed.

  Returns:
    A row of each recipe, that of `workdir` first, JSON: {change: {key: value},
    runs, seeds, and for top1 and top5: errors (shares, of the last evaluation,
    with one crop), error (mean), standard_error (None for one seed), difference
    to the first row and its standard error}.

  Raises:
    UserError: if a run is not done, or was not evaluated.
  """
  from alexnet_jax.evaluation import compare

  paths = dict.fromkeys(
    str(pathlib.Path(path).resolve()) for path in (workdir, *others)
  )
  groups = {}
  for path in paths:
    run = compare.load(path, path)
    if not run.is_done or run.numbers['top1'] is None:
      raise UserError(f'{path} is not done; only runs that are done compare')
    seeds = groups.setdefault(run.recipe(), {})
    seeds.setdefault(run.numbers['seed'], run)  # a copy is no repetition
  base, rows = next(iter(next(iter(groups.values())).values())), []
  for runs in groups.values():
    members = list(runs.values())
    row = {
      'change': _changes(base, members[0]),
      'runs': [run.name for run in members],
      'seeds': list(runs),
    }
    for key in ('top1', 'top5'):
      errors = [1 - run.numbers[key] for run in members]
      row[key] = {'errors': errors, 'error': statistics.fmean(errors)}
      spread = None
      if len(errors) > 1:
        spread = statistics.stdev(errors) / math.sqrt(len(errors))
      row[key]['standard_error'] = spread
      if rows:
        first = rows[0][key]
        both = [spread, first['standard_error']]
        row[key]['difference'] = row[key]['error'] - first['error']
        row[key]['standard_error_of_difference'] = (
          None if None in both else math.hypot(*both)
        )
    rows.append(row)
  return rows


def _changes(base, run):
  """Returns {key: value} of what makes another training, but for the seed."""
  before, after = (
    config_lib.flatten(each.saved.config) for each in (base, run)
  )
  return {
    key: value
    for key, value in after.items()
    if value != before[key] and key != 'seed' and not config_lib.KEYS[key].free
  }


def _ablations_section(rows):
  from alexnet_jax.evaluation.page import Section
  from alexnet_jax.evaluation.page import Table

  def shown(value, error):
    return f'{value:.2f}' + ('' if error is None else f' ± {100 * error:.2f}')

  cells = []
  for number, row in enumerate(rows):
    text = ', '.join(f'{k}={v}' for k, v in row['change'].items())
    cell = [text or ('this run' if not number else 'the same, other data')]
    cell.append(', '.join(map(str, row['seeds'])))
    for key in ('top1', 'top5'):
      each = row[key]
      cell.append(shown(100 * each['error'], each['standard_error']))
      if 'difference' in each:
        error = each['standard_error_of_difference']
        value = shown(100 * each['difference'], error)
        cell.append(value if each['difference'] < 0 else f'+{value}')
      else:
        cell.append('')
    keys = list(row['change'])
    cell.append(_PUBLISHED.get(keys[0], '') if len(keys) == 1 else '')
    cells.append(cell)
  columns = ('changed', 'seeds', 'top-1 error [%]', 'difference')
  columns += ('top-5 error [%]', 'difference', 'published, top-1 and top-5')
  text = (
    'Mean over the seeds ± standard error of the mean, of the last evaluation of'
    ' each run with one crop. Differences are to the first row, in points.'
  )
  table = Table('What a key changes', columns, cells)
  return Section('Ablations', text, tables=[table])


if __name__ == '__main__':
  sys.exit(main())
