"""The page of a comparison: tables and curves of several runs."""

import pathlib

from alexnet_jax import config as config_lib
from alexnet_jax import files
from alexnet_jax.evaluation import compare_figures
from alexnet_jax.evaluation import figures
from alexnet_jax.evaluation import page
from alexnet_jax.evaluation import run_record
from alexnet_jax.evaluation.run_record import RunRecord

PAGE, TABLE = 'index.html', 'table.csv'
# Key: title, what is best (None: nothing).
COLUMNS = {
  'parameters': ('parameters', 'min'),
  'forward_flops_per_image': ('forward FLOP per image', 'min'),
  'training_flops_per_image': ('training FLOP per image', 'min'),
  'steps': ('steps', None),
  'epochs': ('epochs', None),
  'training_seconds': ('training time [s]', 'min'),
  'images_per_second': ('images per second', 'max'),
  'loss': ('loss [nats]', 'min'),
  'top1': ('top-1', 'max'),
  'top5': ('top-5', 'max'),
  'macro_precision': ('macro precision', 'max'),
  'macro_recall': ('macro recall', 'max'),
  'macro_f1': ('macro F1', 'max'),
}
_MEASURES = run_record.MEASURES
_UNKNOWN = '-'


def best(rows: list[dict]) -> set[tuple[int, str]]:
  """(number of the row, key) of the best value of each column.

  Equal ones all count; where all are equal, none does. Measures on different
  validation data have no best.
  """
  same_data = len({row['eval_data'] for row in rows}) == 1
  found = set()
  for key, (_, direction) in COLUMNS.items():
    values = [row[key] for row in rows]
    known = [value for value in values if value is not None]
    if (
      direction is None
      or len(set(known)) < 2
      or (key in _MEASURES and not same_data)
    ):
      continue
    wanted = min(known) if direction == 'min' else max(known)
    found |= {(n, key) for n, value in enumerate(values) if value == wanted}
  return found


def groups(runs: list[RunRecord], rows: list[dict]) -> list[dict]:
  """Mean and sample deviation over the runs that differ in the seed alone.

  Args:
    runs: the runs.
    rows: their numbers, see `compare.compare`.

  Returns:
    [{runs: names, seeds, top1: {mean, deviation}, ...}]; JSON.
  """
  found = []
  for members in run_record.groups(runs):
    chosen = [rows[position] for position in members]
    group = {
      'runs': [row['name'] for row in chosen],
      'seeds': [row['seed'] for row in chosen],
    }
    for key in (*_MEASURES, 'training_seconds', 'images_per_second'):
      values = [row[key] for row in chosen]
      if None not in values:
        group[key] = run_record.spread(values)
    found.append(group)
  return found


def spread_titles(group: dict) -> dict[str, str]:
  """{key: title} of what a group has a mean of."""
  return {key: title for key, (title, _) in COLUMNS.items() if key in group}


def with_deviation(spread: dict[str, float]) -> str:
  digits = 4 if abs(spread['mean']) < 10 else 1
  return f'{spread["mean"]:,.{digits}f} ± {spread["deviation"]:,.{digits}f}'


def data_letters(row: dict) -> str:
  """Of the training and of the validation data of a run."""
  return f'{row["data"]}/{row["eval_data"]}'


def cell(key: str, value: float | None) -> str | float:
  """A value for tables, which have four digits behind the point."""
  if value is None:
    return _UNKNOWN
  if key == 'images_per_second' or (key == 'training_seconds' and value > 100):
    return round(value)
  return value


def write(
  runs: list[RunRecord], result: dict, out: pathlib.Path, unit: str
) -> list[str]:
  """Writes the CSV file, the pictures and, last, the page; their paths.

  Args:
    runs: the runs.
    result: see `compare.compare`.
    out: folder of the page.
    unit: `epochs` or `steps`, of the curves.
  """
  rows = result['runs']
  files.write_csv(out / TABLE, [list(rows[0]), *(r.values() for r in rows)])
  pictures = {}
  for name, draw in _drawings(runs).items():
    pictures[name] = figures.save(draw(runs, unit), out / f'{name}.png')
  sections = [
    _runs_section(result),
    *_group_section(result['groups']),
    *_curves(pictures, unit),
    *_config_section(runs),
  ]
  html = page.render(f'Comparison of {len(runs)} runs', sections)
  page.write(out / PAGE, html)
  names = [TABLE, *(f'{name}.png' for name in pictures), PAGE]
  return [str(out / name) for name in names]


def _drawings(runs):
  """{name: function} of the pictures that the histories are enough for."""
  drawings = {'validation': compare_figures.draw_validation}
  if any(len(figures.step_losses(run.rows)[0]) for run in runs):
    drawings['training_loss'] = compare_figures.draw_training_loss
    drawings['deviation'] = compare_figures.draw_deviation
  return drawings


def _curves(pictures, unit):
  """A section for every picture."""
  window = f'the losses of the last {figures.WINDOW} steps'
  titles = {
    'validation': ('Validation', 'Top-1 and loss on the validation data', ''),
    'training_loss': (
      'Training loss',
      'Rolling mean of the training loss',
      f'Mean of {window}, with dropout and augmentation.',
    ),
    'deviation': (
      'Deviation of the training loss',
      'Rolling deviation of the training loss',
      f'Standard deviation of {window}.',
    ),
  }
  sections = []
  for name, png in pictures.items():
    title, alt, caption = titles[name]
    picture = page.Picture(png, f'{alt} over the {unit}', caption)
    sections.append(page.Section(title, pictures=[picture]))
  return sections


def _runs_section(result):
  """Two tables: one would be wider than the page."""
  rows, found = result['runs'], best(result['runs'])
  cost = [key for key in COLUMNS if key not in _MEASURES]
  measures = [key for key in COLUMNS if key in _MEASURES]
  tables = [
    page.Table(
      title,
      ('run', 'data', *(COLUMNS[key][0] for key in keys)),
      [
        (row['name'], data_letters(row), *(cell(k, row[k]) for k in keys))
        for row in rows
      ],
      sortable=True,
      marked={(n, 2 + keys.index(key)) for n, key in found if key in keys},
    )
    for title, keys in (
      ('Measures on the validation data', measures),
      ('Size, length and speed', cost),
    )
  ]
  text = (
    'The measures are those of the state that a run ends with. Data: a letter'
    ' for the training and one for the validation images. The training time is'
    ' without compilation, evaluation and saving. FLOP: convolutions and dense'
    ' layers, two per multiply-add. Bold: the best of a column.'
  )
  return page.Section(
    'Runs', ' '.join([*result['notes'], text]), (), (), tables
  )


def _group_section(found):
  if not found:
    return []
  titles = spread_titles(found[0])
  table = page.Table(
    'Mean ± standard deviation of the sample',
    ('runs', 'seeds', *titles.values()),
    [
      (
        ', '.join(group['runs']),
        ', '.join(map(str, group['seeds'])),
        *(with_deviation(group[k]) if k in group else _UNKNOWN for k in titles),
      )
      for group in found
    ],
  )
  text = 'Runs that differ in the seed alone.'
  return [page.Section('Repetitions', text, tables=[table])]


def _config_section(runs):
  """The keys of the config in which the runs differ."""
  configs = [config_lib.flatten(run.config) for run in runs]
  rows = [
    (key, *(str(config[key]) for config in configs))
    for key in sorted(configs[0])
    if any(config[key] != configs[0][key] for config in configs)
  ]
  if not rows:
    return []
  columns = ('key', *(run.name for run in runs))
  table = page.Table('Keys of the config that differ', columns, rows)
  return [page.Section('Config', tables=[table])]
