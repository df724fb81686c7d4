"""Compares runs: python -m alexnet_jax.evaluation.compare DIR DIR ...

Writes a page of HTML, its pictures as PNG and its table as CSV. It needs the
runs' folders alone, not their data.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import statistics
import sys
from typing import Any

from alexnet_jax import cli, config as config_lib, files
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import page

_SHARES = ('top1', 'top5', 'macro_precision', 'macro_recall', 'macro_f1')
MEASURES = ('loss', *_SHARES)
_SPEED = ('training_seconds', 'images_per_second')
_SIZE = ('parameters', 'forward_flops_per_image', 'training_flops_per_image')
_TABLES = {  # one would be wider than the page
  'Validation': ('name', 'measured_step', *MEASURES),
  'Size, length and speed': ('name', *_SIZE, 'steps', 'epochs', *_SPEED),
}
_SPREAD = MEASURES + _SPEED
_CONFIDENCE = 0.95
_SPREAD_TITLE = (
  f'Mean ± standard deviation of n runs; {_CONFIDENCE:.0%} confidence interval'
  " of the mean (Student's t), of shares within 0 and 1"
)
_TEXT = (
  'The measures are those of the validation data, at the step that the table'
  ' says; losses are in nats. The training time, of runs that are done, is'
  ' without compilation, evaluation and saving. FLOP: convolutions and dense'
  ' layers, two per multiply-add. The training loss is with dropout and'
  ' augmentation. A click on a column sorts.'
)
_PICTURES = {  # what they show
  'validation': 'Top-1 and loss of the validation',
  'training_loss': 'Rolling mean and deviation of the training loss',
}


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  text = 'Compares runs: curves and tables, as a page of HTML.'
  parser = cli.make_parser('evaluation.compare', text)
  cli.add_workdirs(parser, 'DIR', 'folder of a run')
  add, text = parser.add_argument, 'folder of the page (default: %(default)s)'
  add('--out', default='compare', type=cli.path, metavar='DIR', help=text)
  text = 'what the curves are drawn over (default: %(default)s)'
  add('--over', choices=('epochs', 'steps'), default='epochs', help=text)
  return cli.run_parsed(
    parser,
    argv,
    lambda given: compare(given.workdirs, pathlib.Path(given.out), given.over),
  )


def compare(
  workdirs: Sequence[str], out: pathlib.Path, over: str = 'epochs'
) -> dict:
  """Writes the page, and prints its tables; returns the command's result.

  Args:
    workdirs: folders of runs, or of several runs of `seeds`.
    out: folder of the page.
    over: `epochs` or `steps`, of the curves.

  Raises:
    UserError: if one of them is not the folder of a run.
  """
  from alexnet_jax.evaluation import figures

  workdirs = [run for workdir in workdirs for run in runs_in(workdir)]
  runs = [load(*pair) for pair in zip(workdirs, _names(workdirs), strict=True)]
  rows = [run.numbers for run in runs]
  repetitions = [group for group in groups(runs) if group['n'] > 1]
  remarks = _notes(runs)
  out.mkdir(parents=True, exist_ok=True)
  lines = [list(rows[0]), *(row.values() for row in rows)]
  files.write_csv(out / 'table.csv', lines)
  tables, pictures = [], []
  for title, keys in _TABLES.items():
    cells = [['-' if row[k] is None else row[k] for k in keys] for row in rows]
    tables.append(page.Table(title, _columns(keys), cells, sortable=True))
  sections = [page.Section('Runs', ' '.join([*remarks, _TEXT]), tables=tables)]
  if repetitions:
    tables = [*tables, _spread_table(repetitions)]
    text = 'Runs that are done and differ in the seed alone.'
    sections.append(page.Section('Repetitions', text, tables=tables[-1:]))
  for name, figure in draw(runs, over).items():
    png = figures.save(figure, out / f'{name}.png')
    pictures.append(page.Picture(png, _PICTURES[name]))
  sections.append(page.Section('Curves', pictures=pictures))
  settings = _config_table(runs)
  if settings.rows:
    sections.append(page.Section('Config', tables=[settings]))
  path = str(out / 'index.html')
  page.write(path, f'Comparison of {len(runs)} runs', sections)
  for table in tables:
    page.show_table(table)
  lines = [*(f'NOTE: {remark}' for remark in remarks), f'page: {path}']
  print('\n'.join(lines), file=sys.stderr)
  return {'runs': rows, 'groups': repetitions, 'notes': remarks, 'page': path}


def runs_in(workdir: str) -> list[str]:
  """Returns the one that a folder is, and those of `seeds` in it."""
  from alexnet_jax.training import checkpoint

  found = map(str, pathlib.Path(workdir).glob('seed_*/'))
  begun = filter(checkpoint.has_checkpoint, found)
  runs = sorted(begun, key=lambda path: (len(path), path))
  is_run = not runs or checkpoint.has_checkpoint(workdir)
  return [workdir] * is_run + runs


def _names(workdirs):
  """Names runs by the last parts of their paths, or by all where they agree."""
  if not workdirs:
    raise UserError('there is no run to compare; give folders of runs')
  paths = [pathlib.Path(workdir).resolve() for workdir in workdirs]
  for number, path in enumerate(paths):
    if path in paths[:number]:
      raise UserError(f'{workdirs[number]} is given twice; give it once')
  names = [path.name for path in paths]
  return [
    name if names.count(name) == 1 else str(pathlib.Path(workdir))
    for name, workdir in zip(names, workdirs, strict=True)
  ]


@dataclasses.dataclass(frozen=True)
class Run:
  """A run up to its newest checkpoint, as its folder alone tells it."""

  name: str  # what tables call it
  saved: Any  # see `training.progress.SavedRun`
  rows: list[dict]  # its history, see `training.writers.read_rows`
  # {name, ..., steps, measured_step, loss, ...}: what it cost and how good it
  # is; None where it is not known; JSON.
  numbers: dict

  @property
  def is_done(self) -> bool:
    return self.saved.is_done(self.numbers['steps'])

  def settings(self) -> dict:
    """Returns {key: value} of what decides the training, but for the seed."""
    free = config_lib.free_keys(lengths=False) | {'seed'}
    flat = config_lib.flatten(self.saved.config)
    return {key: value for key, value in flat.items() if key not in free}

  def data_sets(self) -> tuple[str, str]:
    """Returns the fingerprints of training and validation data."""
    return self.numbers['fingerprint'], self.numbers['eval_fingerprint']

  def recipe(self) -> str:
    """Returns what repetitions have in common."""
    return json.dumps([self.settings(), self.data_sets()], sort_keys=True)


def load(workdir: str, name: str) -> Run:
  """Reads the folder of a run, which may be training at the same time.

  Raises UserError if there is no run, or no checkpoint that can be read.
  """
  from alexnet_jax.training import build, checkpoint, writers

  step, saved = checkpoint.read_newest(workdir)
  config, data, progress = saved.config, saved.data, saved.progress
  if saved.imported is not None:
    raise UserError(
      f'{workdir} holds weights of elsewhere: there is no training to compare'
      ' (evaluation.evaluate measures them, evaluation.ensemble several)'
    )
  rows = [row for row in writers.read_rows(workdir) if row['step'] <= step]
  evaluations = {row['step']: row for row in rows if 'eval/loss' in row}
  measured = progress.final_step(config, step)
  if measured not in evaluations:  # it was interrupted between two
    measured = progress.evaluated_step
  values = evaluations.get(measured, progress.last_evaluation)
  numbers = {
    'name': name,
    'workdir': workdir,
    'seed': config.seed,
    'fingerprint': data.fingerprint,
    'eval_fingerprint': data.eval_fingerprint,
    **build.network_costs(config, len(data.class_names)),
    'steps': step,
    'epochs': step * config.global_batch_size / data.num_examples,
    **_speed(workdir, step, saved),
    'measured_step': measured if values else None,
    **{key: values.get(f'eval/{key}') for key in MEASURES},
  }
  return Run(name, saved, rows, numbers)


def _speed(workdir, num_steps, saved):
  """Returns {training_seconds, images_per_second}; None if they are not known.

  They are those of a run that is done, of its steps and of waiting for data,
  without compilation, which is the first step of each start.
  """
  from alexnet_jax.training import accounting

  account = accounting.account(workdir)
  times = account.seconds
  seconds = times.get('train', 0.0) + times.get('data_wait', 0.0)
  if not (seconds and saved.is_done(num_steps)):
    return dict.fromkeys(_SPEED)
  images = account.timed_steps * saved.config.global_batch_size
  return {'training_seconds': seconds, 'images_per_second': images / seconds}


def _finished(runs):
  """Returns {seed: runs} of each recipe of the runs that are done.

  A seed counts once: a copy of a run is no repetition of it.
  """
  found = {}
  for run in filter(lambda run: run.is_done, runs):
    by_seed = found.setdefault(run.recipe(), {})
    by_seed.setdefault(run.numbers['seed'], []).append(run)
  return found.values()


def groups(runs: Sequence[Run]) -> list[dict]:
  """Groups the runs that are done and differ in nothing but the seed.

  Returns:
    [{runs: names, seeds, n, confidence, top1: {mean, standard_error: of the
    mean, deviation: of the sample, low, high: ends of the confidence interval
    of the mean by Student's t}, ...}]; of a single run the mean alone.
  """
  from scipy import special

  result = []
  for by_seed in _finished(runs):
    members = [same[0] for same in by_seed.values()]
    n = len(members)
    group = {'runs': [run.name for run in members], 'seeds': list(by_seed)}
    group |= {'n': n, 'confidence': _CONFIDENCE}
    # The quantile of Student's t with n - 1 degrees of freedom.
    quantile = float(special.stdtrit(n - 1, (1 + _CONFIDENCE) / 2))
    for key in _SPREAD:
      values = [run.numbers[key] for run in members]
      if None in values:
        continue
      group[key] = {'mean': (mean := statistics.fmean(values))}
      if n > 1:
        deviation = statistics.stdev(values)
        error = deviation / math.sqrt(n)
        ends = mean - quantile * error, mean + quantile * error
        if key in _SHARES:
          ends = max(0.0, ends[0]), min(1.0, ends[1])
        group[key] |= {'standard_error': error, 'deviation': deviation}
        group[key] |= dict(zip(('low', 'high'), ends, strict=True))
    result.append(group)
  return result


def _notes(runs):
  """Returns sentences on what speaks against comparing the runs."""
  found = []
  for which, key, meaning in (
    ('validation', 'eval_fingerprint', 'their measures do not compare'),
    ('training', 'fingerprint', 'they did not learn from the same images'),
  ):
    sets = {}
    for run in runs:
      sets.setdefault(run.numbers[key], []).append(run.name)
    if len(sets) > 1:
      names = ' | '.join(', '.join(members) for members in sets.values())
      found.append(f'The {which} data differs, so {meaning}: {names}.')
  for run in runs:
    if not run.is_done:
      steps = f'step {run.numbers["steps"]} of {run.saved.num_steps}'
      found.append(f'{run.name} is not done yet: {steps}.')
  for by_seed in _finished(runs):
    for first, *copies in by_seed.values():
      text = f'has recipe and seed of {first.name}, so it is no repetition.'
      found += [f'{copy.name} {text}' for copy in copies]
  return found


def _columns(keys):
  return [key.replace('_', ' ') for key in keys]


def _spread_table(found):
  rows = []
  for group in found:
    cells = [_listed(group['runs']), _listed(group['seeds']), group['n']]
    for key in _SPREAD:
      shown = {k: page.shown(v) for k, v in group.get(key, {}).items()}
      text = '{mean}\n± {deviation}\n[{low},\n{high}]'
      cells.append(text.format_map(shown) if shown else '-')
    rows.append(cells)
  columns = _columns(('runs', 'seeds', 'n', *_SPREAD))
  return page.Table(_SPREAD_TITLE, columns, rows)


def _listed(values):
  """Lists a few values; of more than three the first and the last."""
  texts = [*map(str, values)]
  return ', '.join(texts if len(texts) < 4 else [texts[0], '...', texts[-1]])


def _config_table(runs):
  configs = [config_lib.flatten(run.saved.config) for run in runs]
  rows = [
    (key, *(str(config[key]) for config in configs))
    for key in sorted(configs[0])
    if any(config[key] != configs[0][key] for config in configs)
  ]
  columns = ('key', *(run.name for run in runs))
  return page.Table('Keys of the config that differ', columns, rows)


def draw(runs: Sequence[Run], unit: str) -> dict:
  """Draws curves over `epochs` or `steps`: {name of `_PICTURES`: figure}."""
  from alexnet_jax.evaluation import figures

  drawn = {name: figures.panels(2) for name in _PICTURES}
  (_, validation), (_, losses) = drawn.values()
  for number, run in enumerate(runs):
    config, examples = run.saved.config, run.saved.data.num_examples
    size = config.global_batch_size / examples if unit == 'epochs' else 1
    style = {
      'color': f'C{number}',  # ten of them
      'linestyle': ('-', '--', ':', '-.')[number // 10 % 4],
      'label': figures.shortened(run.name, 34),  # three to a row of the legend
    }
    for axes, key in zip(validation, ('eval/top1', 'eval/loss'), strict=True):
      figures.draw_line(axes, run.rows, key, size, marker='o', **style)
    steps, _, *rolling = figures.rolling_losses(run.rows)
    for axes, values in zip(losses, rolling, strict=True):
      if len(steps):
        axes.plot(size * steps, values, **style)
  if not losses[0].lines:
    del drawn['training_loss']
  of_steps = f'of {figures.WINDOW} steps [nats]'
  validation[0].set(xlabel=unit, ylabel='validation top-1')
  validation[1].set(ylabel='validation loss [nats]')
  losses[0].set(ylabel=f'training loss,\nmean {of_steps}')
  losses[1].set(ylabel=f'deviation\n{of_steps}')
  for axes in (validation[1], *losses):
    axes.set(xlabel=unit, ylim=(0, None))
  for figure, panels in drawn.values():  # a legend where it hides no line
    lines = panels[0].get_lines()
    figure.legend(handles=lines, loc='outside upper left', ncols=3)
  return {name: figure for name, (figure, _) in drawn.items()}


if __name__ == '__main__':
  sys.exit(main())
