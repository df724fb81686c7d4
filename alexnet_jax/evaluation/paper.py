"""The paper's figures and tables, from a run of one's own.

python -m alexnet_jax.evaluation.paper --workdir DIR [--ensemble DIR ...]
[--ablations DIR ...]

The paper is Krizhevsky, Sutskever and Hinton 2012.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import math
import os
import re
import sys

import numpy as np

from alexnet_jax import cli, files
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import compare
from alexnet_jax.evaluation.page import Section, Table

_DESCRIPTION = """\
Draws figures 3 and 4 and tables 1 and 2 of the paper from a run into
DIR/paper: the kernels of the first layer, the five best classes of eight
validation images, the training images nearest to five of them, and the errors
with one crop and with ten, of an ensemble too. On ImageNet the published
numbers stand beside them. With --ablations it compares runs that differ from
this one in a key, over seeds."""
_ANSWERED, _QUERIES, _NEAREST = 8, 5, 6  # images of figure 4
_SYNSET = re.compile(r'n\d{8}')

# (what, top-1 error, top-5 error) on the validation set of ILSVRC-2012.
_ONE_CROP = (
  ('source release, net 145, one crop', 'about 42.5-42.8%', 'about 19.5-19.8%'),
  ('Caffe bvlc_alexnet, one crop', '42.9%', '19.8%'),
)
_TEN_CROPS = (
  ('paper, 1 CNN, ten crops', '40.7%', '18.2%'),
  ('source release, net 145, ten crops', '40.664%', '18.210%'),
)
_ENSEMBLES = (
  ('paper, 5 CNNs', '38.1%', '16.4%'),
  ('paper, 7 CNNs, two pre-trained on ImageNet 2011', '36.7%', '15.4%'),
)
# What a change cost the paper and, after it, net 145 of its source release:
# points of top-1 and top-5 error.
PUBLISHED = {
  "model.norm: 'lrn' -> 'none'": 'no LRN: +1.4, +1.2; +1.370, +1.152',
  'model.pool_size: 3 -> 2': 'no overlap: +0.4, +0.3; +0.394, +0.300',
  'data.pca_lighting: 0.1 -> 0.0': 'no lighting: over +1',
  "model.activation: 'relu' -> 'tanh'": (
    'tanh: six times slower to 25% training error (CIFAR-10)'
  ),
  'model.dropout: 0.5 -> 0.0': 'no dropout: "substantial overfitting"',
  'model.groups: (1, 2, 1, 2, 2) -> (1, 1, 1, 1, 1)': (
    'one GPU with half the kernels: +1.7, +1.2'
  ),
}


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('evaluation.paper', _DESCRIPTION)
  add, more = parser.add_argument, {'nargs': '+', 'default': []}
  text = 'other networks, whose probabilities are averaged with those of this'
  add('--ensemble', metavar='DIR[:CHECKPOINT]', help=text, **more)
  text = 'runs that differ from this one in a key or the seed, and folders of'
  text += ' `seeds`; all are done'
  add('--ablations', metavar='DIR', type=cli.path, help=text, **more)
  cli.add_run(parser)
  cli.add_data_path(parser)
  return cli.run_parsed(parser, argv, _work)


def _work(arguments):
  """Writes the page; returns the command's result."""
  from alexnet_jax.evaluation import ensemble, loading, sections

  workdir, which = arguments.workdir, arguments.checkpoint
  compared, joint = [], {}
  if arguments.ablations:  # what refuses bad input at once comes first
    compared = compare_ablations(workdir, arguments.ablations)
  if arguments.ensemble:
    names = [f'{workdir}:{which}', *arguments.ensemble]
    joint = ensemble.measure(names, crops=10, data_path=arguments.data_path)
    which = str(joint['members'][0]['step'])
  run = loading.load_network(workdir, which, arguments.data_path)
  subject = sections.measure_run(run)

  def draw_all(album):
    kernels = sections.first_layer(subject, album)
    result, parts = draw(subject, album, joint)
    result |= {'step': int(run.state.step), 'ablations': compared}
    tables = [_ablations(compared)] if compared else []
    return result, [*kernels, *parts, *tables]

  title = 'The figures and tables of the paper, from'
  return sections.write_page(workdir, 'paper', title, draw_all)


def draw(subject, album, joint: dict | None = None) -> tuple[dict, list]:
  """Draws figure 4 and the tables; for figure 3 see `sections.first_layer`.

  Args:
    subject: a `sections.MeasuredRun`.
    album: a `sections.Album`.
    joint: of `ensemble.measure` with ten crops, this run first; or nothing.

  Returns ({errors: {model: [top-1, top-5]} as shares, answers, nearest}: JSON;
  the sections of a page).
  """
  values = {'1 CNN, one crop': subject.measured.values}
  if joint:
    values['1 CNN, ten crops'] = joint['members'][0]
    values[f'{len(joint["members"])} CNNs, ten crops'] = joint
  else:
    values['1 CNN, ten crops'] = _measure_ten_crops(subject)
  errors = {
    model: [1 - found['eval/top1'], 1 - found['eval/top5']]
    for model, found in values.items()
  }
  answers, left = _draw_answers(subject, album)
  nearest, right = _draw_nearest(subject, album)
  tables = make_tables(errors, subject.run.class_names)
  text = (
    f'Errors on {subject.validation.source.name}. A run on ImageNet has the'
    ' published ones beside its own: on the validation set of ILSVRC-2012.'
  )
  result = {'errors': errors, 'answers': answers, 'nearest': nearest}
  return result, [left, right, Section('Tables 1 and 2', text, tables=tables)]


def _measure_ten_crops(subject):
  from alexnet_jax.evaluation import evaluate, loading
  from alexnet_jax.training import build

  run = subject.run
  loading.warn_of_crops(run, 10)
  mean = build.stored_mean(run.config, run.workdir)
  steps = build.make_steps(run.config, run.mesh, mean, crops=10)
  run = dataclasses.replace(run, steps=steps)
  return evaluate.measure_all(run, subject.validation, 10).values


def make_tables(errors: dict, class_names: Sequence[str]) -> list[Table]:
  """Returns tables 1 and 2: of one network, of one and several.

  `errors` are {model: (top-1, top-5)}, shares: one crop, ten crops and, maybe,
  an ensemble. 1,000 synsets as class names are ImageNet's; then the published
  errors are in.
  """
  one, ten, *joint = (
    (f'this run, {model}', *(f'{error:.1%}' for error in both))
    for model, both in errors.items()
  )
  first, second = [one, ten], [ten, *joint]
  if len(class_names) == 1000 and all(map(_SYNSET.fullmatch, class_names)):
    first += [*_ONE_CROP, *_TEN_CROPS]
    second += [_TEN_CROPS[0], *_ENSEMBLES]
  columns = ('model', 'top-1 error', 'top-5 error')
  return [
    Table('Table 1: one network', columns, first),
    Table('Table 2: one network and several', columns, second),
  ]


def _draw_answers(subject, album):
  """Draws the left of figure 4; returns ([answers], section)."""
  from matplotlib.figure import Figure

  from alexnet_jax.data import images
  from alexnet_jax.evaluation import figures

  seen, chosen = subject.measured.predictions, subject.evenly_chosen(_ANSWERED)
  lines, answers = -(-len(chosen) // 4), []
  figure = Figure(figsize=(11, 4.6 * lines), dpi=110, layout='constrained')
  axes = figure.subplots(2 * lines, 4, height_ratios=[5, 3] * lines)
  for panel in axes.flat:
    panel.set_axis_off()
  crops = subject.crops(chosen)
  for number, (index, crop) in enumerate(zip(chosen, crops, strict=True)):
    label, classes = seen.labels[index], seen.classes[index]
    best = [*map(subject.name, classes)], seen.probabilities[index].tolist()
    line, column = divmod(number, 4)
    axes[2 * line, column].imshow(images.as_rgb(crop))
    bars = axes[2 * line + 1, column]
    colors = np.where(classes == label, '#8fce9c', '#a9c8e6')
    bars.barh(range(len(classes)), best[1], color=colors)
    for rank, name in enumerate(best[0]):
      style = {'va': 'center', 'fontsize': 9, 'parse_math': False}
      bars.text(0.02, rank, figures.shortened(name, 28), **style)
    title = figures.shortened(subject.name(label), 28)
    bars.set_title(title, fontsize=11, weight='bold', parse_math=False)
    bars.set(xlim=(0, 1), ylim=(4.6, -0.6))
    answer = {'class': subject.name(label), 'best': [*zip(*best, strict=True)]}
    image = subject.validation.source.describe(int(index))
    answers.append({'image': image, **answer})
  picture = album.add(
    'figure_4_left',
    figure,
    f'{len(answers)} validation images with their five best classes as bars',
    'Chosen evenly over the split. Below each image its true class, and the'
    ' probabilities of the five best; that of the true one is green.',
  )
  return answers, Section('Figure 4, left', pictures=[picture])


def _draw_nearest(subject, album):
  """Draws the right of figure 4; returns ([nearest images], section)."""
  from alexnet_jax.data import images
  from alexnet_jax.evaluation import features, figures

  run, training, validation = subject.run, subject.training, subject.validation
  title, (*layers, _) = 'Figure 4, right', features.layer_shapes(run)
  if training is None or not layers:
    lacking = 'images of the training' if layers else 'hidden layers'
    return [], Section(title, f'There are no {lacking}.')
  layer, chosen = layers[-1], subject.evenly_chosen(_QUERIES)
  squares = [validation.square(int(index))[0] for index in chosen]
  queries = features.of_images(run, squares, layer)
  outputs = features.layer_outputs(run, training, [layer])
  batches = ((counts, found[layer]) for _, counts, found in outputs)
  distances, nearest = find_nearest(queries, batches, _NEAREST)
  size, result = run.config.data.crop_size, []
  tiles, captions, colors = [], [], []
  for row, query in enumerate(chosen):
    label = subject.measured.predictions.labels[query]
    tiles.append(images.center_crop(squares[row], size))
    captions.append((subject.name(label), 'query'))
    colors.append('black')
    for index, distance in zip(nearest[row], distances[row], strict=True):
      square, its = training.square(int(index))
      tiles.append(images.center_crop(square, size))
      captions.append((subject.name(its), f'{distance:.4g}'))
      colors.append(figures.RIGHT if its == label else figures.WRONG)
    names = [training.source.describe(int(index)) for index in nearest[row]]
    found = {'nearest': names, 'distances': distances[row].tolist()}
    result.append({'image': validation.source.describe(int(query)), **found})
  picture = album.add(
    'figure_4_right',
    figures.draw_grid(tiles, 1 + nearest.shape[1], 140, captions, colors),
    f'{len(chosen)} validation images, each with its nearest training images',
    'First column: validation images, chosen evenly. Beside each the training'
    f' images whose outputs of {layer} have the smallest Euclidean distance,'
    ' which is below them; green: of the same class.',
  )
  return result, Section(title, pictures=[picture])


def find_nearest(
  queries: np.ndarray, batches: Iterable[tuple], count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the rows that are nearest to each query by Euclidean distance.

  Queries are float32 [q, ...], batches pairs (whether a row counts: bool [b],
  rows: float32 [b, ...]). Returns `count` rows for each query, or all there
  are: (distances float64 [q, n], the nearest first; int64 [q, n]: their
  numbers, among all rows).
  """
  from alexnet_jax.evaluation import features

  queries, kept, first = queries.reshape(len(queries), -1), [], 0
  for counts, rows in batches:
    rows = np.float64(rows.reshape(len(rows), -1)[counts])
    gaps = -np.array(
      [np.linalg.norm(rows - query, axis=1) for query in queries]
    )
    numbers = np.broadcast_to(first + np.flatnonzero(counts), gaps.shape)
    first += len(counts)
    kept = [features.largest([*kept, (gaps, numbers)], count)]
  gaps, numbers = kept[0]
  return -gaps, numbers


def compare_ablations(workdir: str, others: Iterable[str]) -> list[dict]:
  """Compares a run with others that differ in keys of the config, or the seed.

  Returns a row of each recipe, that of `workdir` first, JSON: {changes: of
  keys, seeds, runs}, and of top-1 and top-5 error and their difference to the
  first row, {top1, top5, top1_difference, top5_difference}: [mean over the
  seeds of the last evaluations, its standard error or None]; shares, of one
  crop. Raises UserError if a run is not done, or of other data.
  """
  paths = [path for other in others for path in compare.runs_in(other)]
  paths = dict.fromkeys(map(os.path.realpath, (workdir, *paths)))
  runs, rows = [compare.load(path, path) for path in paths], []
  for run in runs:
    if not run.is_done or run.numbers['top1'] is None:
      raise UserError(f'{run.name} is not done; compare runs that are')
    if run.data_sets() != runs[0].data_sets():
      raise UserError(
        f'{run.name} has other data than {runs[0].name}; compare runs of one'
        ' data set'
      )
  named = {run.name: run for run in runs}
  for group in compare.groups(runs):
    changes = _changes(runs[0], named[group['runs'][0]])
    row = {'changes': changes, 'seeds': group['seeds'], 'runs': group['runs']}
    for key in ('top1', 'top5'):
      mean = 1 - group[key]['mean']
      spread = group[key].get('standard_error')
      row[key] = mean, spread
      if rows:
        first, other = rows[0][key]
        both = None if None in (spread, other) else math.hypot(spread, other)
        row[f'{key}_difference'] = mean - first, both
    rows.append(row)
  return rows


def _changes(first, run):
  changes = files.differences(first.settings(), run.settings())
  return [f'{key}: {a!r} -> {b!r}' for key, (a, b) in changes.items()]


def _ablations(rows):
  """Makes the section of `compare_ablations`."""

  def shown(row, key, form):
    if key not in row:
      return ''
    mean, error = row[key]
    spread = '' if error is None else f' ± {100 * error:.2f}'
    return f'{100 * mean:{form}}{spread}'

  cells = []
  for row in rows:
    changes, published = row['changes'], ''
    if len(changes) == 1:
      published = PUBLISHED.get(changes[0], '')
    values = [
      shown(row, key + more, form)
      for key in ('top1', 'top5')
      for more, form in (('', '.2f'), ('_difference', '+.2f'))
    ]
    seeds = ', '.join(map(str, row['seeds']))
    cells.append(('; '.join(changes) or 'this run', seeds, *values, published))
  columns = ('changed', 'seeds', 'top-1 error [%]', 'difference')
  columns += ('top-5 error [%]', 'difference', 'of the paper')
  text = (
    'Means over the seeds ± their standard error, of the last evaluations, with'
    ' one crop. Differences are to the first row, in points. Last: top-1 and'
    ' top-5 of the paper, and then of its source release with ten crops, on'
    ' ImageNet.'
  )
  table = Table('What a key changes', columns, cells)
  return Section('Ablations', text, tables=[table])


if __name__ == '__main__':
  sys.exit(main())
