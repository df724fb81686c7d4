"""The paper's figures and tables, from a run of one's own.

python -m alexnet_jax.evaluation.paper --workdir DIR [--ensemble DIR ...]
[--ablations DIR ...]

The paper is Krizhevsky, Sutskever and Hinton 2012.
"""

import argparse
from collections.abc import Iterable
from collections.abc import Sequence
import math
import os
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
--ablations it compares runs that differ from this one in a key, over seeds."""
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
  ('paper, 7 CNNs, two of them trained on ImageNet 2011', '36.7%', '15.4%'),
)
# What a key's change cost the paper and, after it, net 145 of its source
# release: points of top-1 and top-5 error.
_PUBLISHED = {
  'model.norm': 'no LRN: +1.4, +1.2; +1.370, +1.152',
  'model.pool_size': 'no overlap: +0.4, +0.3; +0.394, +0.300',
  'data.pca_lighting': 'no lighting: over +1',
  'model.activation': 'tanh: six times slower to 25% training error (CIFAR-10)',
  'model.dropout': 'no dropout: "substantial overfitting"',
  'model.groups': 'one GPU with half the kernels: +1.7, +1.2',
}


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.paper', description=_DESCRIPTION
  )
  add, more = parser.add_argument, {'nargs': '+', 'default': []}
  text = 'other networks, whose probabilities are averaged with those of this'
  add('--ensemble', metavar='DIR[:CHECKPOINT]', help=text, **more)
  text = 'runs that differ from this one in a key or the seed; all are done'
  add('--ablations', metavar='DIR', type=cli.path, help=text, **more)
  cli.add_run(parser)
  cli.add_data_path(parser)
  cli.add_json(parser)
  arguments = parser.parse_args(argv)
  return cli.run(lambda: _work(arguments), json_output=arguments.json)


def _work(arguments):
  """Writes the page; returns the command's result."""
  from alexnet_jax.evaluation import sections

  workdir, compared = arguments.workdir, []
  if arguments.ablations:  # before what takes minutes
    compared = compare_ablations(workdir, arguments.ablations)
  subject = sections.load(
    workdir, arguments.checkpoint, arguments.data_path, lambda: None
  )

  def everything(album):
    kernels = sections.first_layer(subject, album)
    result, parts = draw(subject, album, arguments.ensemble)
    result |= {'step': int(subject.run.state.step), 'ablations': compared}
    parts = [*kernels, *parts, *([_ablations(compared)] if compared else [])]
    return result, parts

  title = 'The figures and tables of the paper, from'
  return sections.write_page(workdir, FOLDER, title, everything)


def draw(subject, album, members: Sequence[str] = ()) -> tuple[dict, list]:
  """Draws figure 4 and the tables of a measured run.

  For figure 3 see `sections.first_layer`.

  Args:
    subject: a `sections.MeasuredRun`.
    album: a `sections.Album`.
    members: other runs of an ensemble, `DIR` or `DIR:CHECKPOINT`.

  Returns:
    ({errors: {what: [top-1, top-5]} as shares, answers, nearest}: JSON; the
    sections of a page).
  """
  from alexnet_jax.evaluation.page import Section

  errors = _errors(subject, members)
  answers, left = _answers(subject, album)
  nearest, right = _neighbors(subject, album)
  source = subject.validation.source
  tables = make_tables(errors, subject.run.class_names)
  text = (
    f'Errors on {source.name}. A run on ImageNet has the published ones beside'
    ' its own: on the validation set of ILSVRC-2012.'
  )
  tables = Section('Tables 1 and 2', text, tables=tables)
  result = {'errors': errors, 'answers': answers, 'nearest': nearest}
  return result, [left, right, tables]


def _errors(subject, members):
  """Measures with ten crops, and together; {what: [top-1, top-5]}."""
  from alexnet_jax.evaluation import ensemble
  from alexnet_jax.evaluation import evaluate
  from alexnet_jax.evaluation import loading

  run, several = subject.run, f'{1 + len(members)} CNNs, ten crops'
  place = str(run.workdir), str(int(run.state.step)), run.data_path
  values = {'1 CNN, one crop': subject.measured.values}
  if members:
    names = [f'{place[0]}:{place[1]}', *members]
    options = {'split': 'validation', 'crops': 10, 'data_path': place[2]}
    joint = ensemble.measure(argparse.Namespace(workdirs=names, **options))
    values |= {'1 CNN, ten crops': joint['members'][0], several: joint}
  else:
    ten = loading.load_network(*place, crops=10)
    loading.warn_of_crops(ten, 10)
    measured = evaluate.measure_all(ten, subject.validation, 10)
    values['1 CNN, ten crops'] = measured.values
  return {
    name: [1 - found['eval/top1'], 1 - found['eval/top5']]
    for name, found in values.items()
  }


def make_tables(errors: dict, class_names: Sequence[str]) -> list:
  """Returns tables 1 and 2: of one network, of one and several.

  Args:
    errors: {what: (top-1, top-5)}, shares; one crop, ten crops and, maybe, an
      ensemble.
    class_names: 1,000 synsets are ImageNet's; then the published errors are in.
  """
  from alexnet_jax.evaluation.page import Table

  one, ten, *joint = (
    (f'this run, {name}', *(f'{error:.1%}' for error in both))
    for name, both in errors.items()
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


def _answers(subject, album):
  """Makes the left of figure 4: ([answers], section)."""
  from alexnet_jax.evaluation.page import Section

  seen, chosen = subject.measured.predictions, subject.evenly_chosen(_ANSWERED)
  best = zip(seen.classes[chosen], seen.probabilities[chosen], strict=True)
  rows = [
    {
      'image': subject.validation.source.describe(int(index)),
      'class': subject.name(seen.labels[index]),
      'best': [*zip(map(subject.name, classes), shares.tolist(), strict=True)],
    }
    for index, (classes, shares) in zip(chosen, best, strict=True)
  ]
  picture = album.add(
    'figure_4_left',
    _draw_answers(subject.crops(chosen), rows),
    f'{len(rows)} validation images with their five best classes as bars',
    'Chosen evenly over the split. Below each image its true class, and the'
    ' probabilities of the five best; that of the true one is green.',
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
    line, column = divmod(number, 4)
    axes[2 * line, column].imshow(image)
    bars = axes[2 * line + 1, column]
    title = figures.shortened(row['class'], 28)
    bars.set_title(title, fontsize=11, weight='bold', parse_math=False)
    for place, (name, share) in enumerate(row['best']):
      color = '#8fce9c' if name == row['class'] else '#a9c8e6'
      bars.barh(place, share, color=color)
      style = {'va': 'center', 'fontsize': 9, 'parse_math': False}
      bars.text(0.02, place, figures.shortened(name, 28), **style)
    bars.set(xlim=(0, 1), ylim=(4.6, -0.6))
  return figure


def _neighbors(subject, album):
  """Makes the right of figure 4: ([nearest of each query], section)."""
  from alexnet_jax.data import images
  from alexnet_jax.evaluation import features
  from alexnet_jax.evaluation import figures
  from alexnet_jax.evaluation.page import Section

  training, run, title = subject.training, subject.run, 'Figure 4, right'
  if training is None:
    return [], Section(title, 'The images of the training are not there.')
  layer = [*features.layer_shapes(run)][-2]  # the last is the head
  chosen = subject.evenly_chosen(_QUERIES)
  squares = [subject.validation.square(int(index))[0] for index in chosen]
  distances, nearest = find_nearest(
    features.of_images(run, squares, layer),
    (
      (counts, outputs[layer])
      for _, counts, outputs in features.layer_outputs(run, training, [layer])
    ),
    _NEAREST,
  )
  tiles, captions, colors, found = [], [], [], []
  for row, (query, image) in enumerate(
    zip(chosen, subject.crops(chosen), strict=True)
  ):
    name = subject.name(subject.measured.predictions.labels[query])
    tiles.append(image)
    captions.append((name, 'query'))
    colors.append('black')
    for index, distance in zip(nearest[row], distances[row], strict=True):
      square, label = training.square(int(index))
      tiles.append(images.center_crop(square, len(image)))
      captions.append((subject.name(label), f'{distance:.4g}'))
      is_same = subject.name(label) == name
      colors.append(figures.RIGHT if is_same else figures.WRONG)
    found.append(
      {
        'image': subject.validation.source.describe(int(query)),
        'nearest': [training.source.describe(int(i)) for i in nearest[row]],
        'distances': distances[row].tolist(),
      }
    )
  picture = album.add(
    'figure_4_right',
    figures.draw_grid(tiles, 1 + nearest.shape[1], 140, captions, colors),
    f'{len(found)} validation images, each with its nearest training images',
    'First column: validation images, chosen evenly. Beside each the training'
    f' images whose outputs of {layer} have the smallest Euclidean distance,'
    ' which is below them; green: of the same class.',
  )
  return found, Section(title, pictures=[picture])


def find_nearest(
  queries: np.ndarray, batches: Iterable[tuple], count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the rows that are nearest to each query by Euclidean distance.

  Args:
    queries: float32 [q, ...].
    batches: pairs (whether a row counts: bool [b], rows: float32 [b, ...]).
    count: rows to find for a query, or as many as there are.

  Returns:
    (distances float64 [q, n], the nearest first; int64 [q, n]: numbers of the
    rows, those that do not count included).
  """
  distances, numbers, first = np.zeros((len(queries), 0)), None, 0
  for counts, rows in batches:
    gaps = np.float64([rows[counts] - query for query in queries])
    new = np.sqrt(np.square(gaps).reshape(*gaps.shape[:2], -1).sum(2))
    new_numbers = np.broadcast_to(first + np.flatnonzero(counts), new.shape)
    first += len(counts)
    distances = np.concatenate([distances, new], 1)
    order = np.argsort(distances, 1, kind='stable')[:, :count]
    both = [new_numbers] if numbers is None else [numbers, new_numbers]
    distances = np.take_along_axis(distances, order, 1)
    numbers = np.take_along_axis(np.concatenate(both, 1), order, 1)
  return distances, numbers


def compare_ablations(workdir: str, others: Iterable[str]) -> list[dict]:
  """Compares a run with others that differ in keys of the config, or the seed.

  Returns:
    A row of each recipe, that of `workdir` first, JSON: {changes: of keys,
    seeds, runs}, and of top-1 and top-5 error and their difference to the first
    row, {top1, top5, top1_difference, top5_difference}: [mean over the seeds of
    the last evaluations, its standard error or None]; shares, of one crop.

  Raises:
    UserError: if a run is not done, or was not evaluated.
  """
  from alexnet_jax.evaluation import compare

  groups = {}
  for path in dict.fromkeys(map(os.path.realpath, (workdir, *others))):
    run = compare.load(path, path)
    if not run.is_done or run.numbers['top1'] is None:
      raise UserError(f'{path} is not done; compare runs that are')
    # A copy of a run is no repetition of it.
    groups.setdefault(run.recipe(), {}).setdefault(run.numbers['seed'], run)
  rows, base = [], None
  for runs in groups.values():
    first, *_ = runs.values()
    base = base or first.saved.config
    changes = config_lib.training_changes(base, first.saved.config)
    row = {
      'changes': [
        change.removeprefix('config.')
        for change in changes
        if not change.startswith('config.seed:')
      ],
      'seeds': [*runs],
      'runs': [run.name for run in runs.values()],
    }
    for key in ('top1', 'top5'):
      errors = [1 - run.numbers[key] for run in runs.values()]
      spread = None
      if len(errors) > 1:
        spread = statistics.stdev(errors) / math.sqrt(len(errors))
      row[key] = statistics.fmean(errors), spread
      if rows:
        mean, other = rows[0][key]
        both = None if None in (spread, other) else math.hypot(spread, other)
        row[f'{key}_difference'] = row[key][0] - mean, both
    rows.append(row)
  return rows


def _ablations(rows):
  """Makes the section of `compare_ablations`."""
  from alexnet_jax.evaluation.page import Section
  from alexnet_jax.evaluation.page import Table

  def shown(value, form):
    mean, error = value
    spread = '' if error is None else f' ± {100 * error:.2f}'
    return f'{100 * mean:{form}}{spread}'

  cells = []
  for row in rows:
    changes, published = row['changes'], ''
    if len(changes) == 1:
      published = _PUBLISHED.get(changes[0].partition(':')[0], '')
    cells.append(
      (
        '; '.join(changes) or ('other data' if cells else 'this run'),
        ', '.join(map(str, row['seeds'])),
        *(
          shown(row[key], form) if key in row else ''
          for name in ('top1', 'top5')
          for key, form in ((name, '.2f'), (f'{name}_difference', '+.2f'))
        ),
        published,
      )
    )
  columns = ('changed', 'seeds', 'top-1 error [%]', 'difference')
  columns += ('top-5 error [%]', 'difference', 'of the paper')
  text = (
    'Means over the seeds ± their standard error, of the last evaluations, with'
    ' one crop. Differences are to the first row, in points. Last: top-1 and'
    ' top-5 of the paper, and then of its source release, on ImageNet.'
  )
  table = Table('What a key changes', columns, cells)
  return Section('Ablations', text, tables=[table])


if __name__ == '__main__':
  sys.exit(main())
