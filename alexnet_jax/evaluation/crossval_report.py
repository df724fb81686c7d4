"""What a cross-validation found: a table and box plots."""

import rich.console
import rich.table

from alexnet_jax.evaluation import crossval
from alexnet_jax.evaluation import figures

_TITLES = {'train': 'training', 'validation': 'held out'}
PLOTTED = {'top1': 'accuracy (top-1)', 'macro_precision': 'macro precision'}


def show(result: dict) -> None:
  """Prints the table of all folds; see `crossval.cross_validate`."""
  columns = {
    'loss': 'loss',
    'top1': 'top-1',
    'macro_precision': 'macro prec.',
  }
  table = rich.table.Table(
    title=f'{len(result["folds"])} folds, measured on the folds of the training'
    ' and on the one held out',
    title_justify='left',
  )
  table.add_column('fold')
  for split in crossval.SPLITS:
    for name in columns.values():
      table.add_column(f'{_TITLES[split]}\n{name}', justify='right')

  def add(label, form, **options):
    cells = [form(split, key) for split in crossval.SPLITS for key in columns]
    table.add_row(label, *cells, **options)

  for fold in result['folds']:
    add(str(fold['fold']), lambda split, key, of=fold: f'{of[split][key]:.4f}')
  table.add_section()
  mean, deviation = result['mean'], result['deviation']
  add(
    'mean\n± sd',
    lambda s, key: f'{mean[s][key]:.4f}\n± {deviation[s][key]:.4f}',
    style='bold',
  )
  rich.console.Console(
    stderr=True, width=100, highlight=False, markup=False, emoji=False
  ).print(table)


def draw_box_plots(result: dict):
  """Accuracy and macro precision of the folds as box plots; a figure.

  Args:
    result: of `crossval.cross_validate`.
  """
  figure, axes = figures.panels(2)
  axes[1].sharey(axes[0])
  for axis, (name, title) in zip(axes, PLOTTED.items(), strict=True):
    values = [
      [fold[split][name] for fold in result['folds']]
      for split in crossval.SPLITS
    ]
    axis.boxplot(
      values,
      tick_labels=[_TITLES[split] for split in crossval.SPLITS],
      widths=0.45,
      showfliers=False,  # every fold has its dot
      medianprops={'color': 'C1'},
    )
    for position, points in enumerate(values, 1):
      # Beside one another, so that equal ones are seen.
      shifts = [
        0.16 * (i / (len(points) - 1) - 0.5) for i in range(len(points))
      ]
      places = [position + shift for shift in shifts]
      axis.plot(places, points, 'o', color='C0', markersize=4, alpha=0.6)
    axis.set(title=title)
  figure.suptitle(
    f'{len(result["folds"])} folds, a dot each; box: quartiles, orange: median',
    fontsize=10,
  )
  return figure
