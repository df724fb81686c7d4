"""Pictures of a sweep."""

import pathlib
import warnings

import numpy as np

from alexnet_jax.evaluation import figures


def draw(study, folder: pathlib.Path, monitor: str) -> dict[str, str]:
  """Draws what the trials are enough for, as PNG.

  Args:
    study: whose trials are all finished.
    folder: is made if it is missing.
    monitor: what a trial is judged by.

  Returns:
    {what: path}: evaluations and, of the trials that came to their end,
    history, parallel_coordinates, slice, importances.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot
  import optuna

  folder.mkdir(exist_ok=True)
  paths = {}
  for name, drawing in _drawings(study, monitor).items():
    # Optuna sets the style of all pictures to come.
    with matplotlib.rc_context(), warnings.catch_warnings():
      warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
      # Where all trials have the same value.
      warnings.filterwarnings('ignore', 'Attempting to set identical')
      figure = np.ravel(drawing())[0].figure
      paths[name] = str(folder / f'{name}.png')
      figure.savefig(paths[name], dpi=110, bbox_inches='tight')
      pyplot.close(figure)
  return paths


def _drawings(study, monitor):
  """{name: function that draws, and returns axes}."""
  import optuna
  from optuna.visualization import matplotlib as plots

  trials = study.get_trials(deepcopy=False)
  done = [trial for trial in trials if trial.state.name == 'COMPLETE']
  drawings, named = {}, {'target_name': monitor}
  if any(trial.intermediate_values for trial in trials):
    drawings['evaluations'] = lambda: _evaluations(trials, monitor)
  if done:
    in_all = sorted(set.intersection(*(set(trial.params) for trial in done)))
    drawings['history'] = lambda: plots.plot_optimization_history(
      study, **named
    )
    drawings['parallel_coordinates'] = lambda: _mend_parallel(
      plots.plot_parallel_coordinate(study, in_all, **named),
      [monitor, *in_all],
    )
    params = [item for trial in done for item in trial.params.items()]
    whole = {name for name, value in params if isinstance(value, int)}
    drawings['slice'] = lambda: _mend_slices(
      plots.plot_slice(study, **named), whole
    )
  if len({trial.value for trial in done}) > 1:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    drawings['importances'] = lambda: plots.plot_param_importances(
      study, evaluator=evaluator, **named
    )
  return drawings


def _evaluations(trials, monitor):
  """The curve of every trial; those that were ended have a cross there."""
  import matplotlib

  _, (axes,) = figures.panels(1, height=4.5)
  done = [trial for trial in trials if trial.state.name == 'COMPLETE']
  colors = matplotlib.colormaps['viridis']
  for trial in trials:
    if not trial.intermediate_values:
      continue
    points = sorted(trial.intermediate_values.items())
    if trial in done:
      color = colors(done.index(trial) / max(1, len(done) - 1))
      axes.plot(*zip(*points, strict=True), 'o-', color=color, markersize=3)
    else:
      axes.plot(
        *zip(*points, strict=True), ':', color='gray', linewidth=1, zorder=1
      )
      axes.plot(*points[-1], 'x', color='C3', markersize=5, zorder=3)
  axes.set(xlabel='evaluation', ylabel=monitor)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_title(
    f'{len(done)} trials that came to their end (the first dark, the last'
    ' yellow); dotted: pruned or failed at the cross',
    fontsize=10,
  )
  return axes


def _mend_parallel(axes, names):
  """Room for the names, and no grids of all the scales over one another."""
  figure = axes.figure
  figure.set_size_inches(max(7, 1.7 * len(names)), 5)
  for each in figure.axes:
    each.grid(False)
    _plain_ticks(each.yaxis)
    for label in each.get_yticklabels():
      box = {
        'facecolor': 'white',
        'edgecolor': 'none',
        'alpha': 0.7,
        'pad': 0.5,
      }
      label.set(fontsize=8, bbox=box)
  for lines in axes.collections:
    lines.set_cmap('viridis')  # no value of it is as white as the sheet
  axes.set_xticklabels(names, rotation=15, ha='right')
  return axes


def _mend_slices(axes, whole):
  """Few ticks on logarithmic axes: the names of the minor ones overlap."""
  for each in np.ravel(axes):
    _plain_ticks(each.xaxis, each.get_xlabel() in whole)
    each.tick_params(axis='x', labelrotation=30)
  return axes


def _plain_ticks(axis, whole=False):
  """Numbers written out; whole ones if asked to or where the ends are whole."""
  from matplotlib import ticker

  low, high = axis.get_view_interval()
  if axis.get_scale() == 'log':
    subs = (1, 2, 5) if high / low < 50 else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    axis.set_minor_locator(ticker.NullLocator())
  elif whole or (low.is_integer() and high.is_integer()):
    locator = axis.get_major_locator()
    if isinstance(locator, ticker.MaxNLocator):  # not of names
      locator.set_params(integer=True)
