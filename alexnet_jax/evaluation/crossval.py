"""Cross-validation: trains and measures a recipe once for every fold.

python -m alexnet_jax.evaluation.crossval --config FILE --folds 10
"""

import statistics
import sys

from alexnet_jax import cli, files
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import repeat

_DEFAULT_FOLDS = 10
_SPLITS = {'train': 'training', 'validation': 'held out'}
_SHOWN = {'loss': 'loss', 'top1': 'top-1', 'macro_precision': 'macro precision'}
_EPILOG = """\
Every fold is a run of its own in DIR/fold_00, DIR/fold_01 and so on, trained
with config.data.folds and config.data.fold on all folds but one, and measured
in its final state on both sides. It keeps its checkpoints (8 to 16 bytes a
parameter). Killed at any moment and started again, the same command goes on;
folds that are done are not touched. Any key of the config can be changed:
--config.global_batch_size=64. Reports are left out."""


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  text = 'Trains and measures a recipe once for every fold.'
  parser = cli.make_parser('evaluation.crossval', text, _EPILOG, False)
  add = parser.add_argument
  text = f'number of folds (default: config.data.folds, or {_DEFAULT_FOLDS})'
  add('--folds', type=int, metavar='K', help=text)
  return repeat.run_command(parser, _work, argv)


def _work(arguments, config, workdir, stop):
  """Makes what is missing; returns the command's result."""
  from alexnet_jax.evaluation import figures

  asked, configured = arguments.folds, config.data.folds
  if asked and configured and asked != configured:
    raise UserError(
      f'--folds is {asked}, config.data.folds {configured}: give one of them'
    )
  folds = configured or _DEFAULT_FOLDS if asked is None else asked
  if folds < 2:
    raise UserError(f'--folds is {folds}; it must be at least 2')
  result = _cross_validate(config, workdir, folds, stop)
  files.write_json(workdir / 'crossval.json', result)
  _show(result)
  figures.save(draw_box_plots(result), workdir / 'box_plots.png')
  print(f'result and box plots: {workdir}', file=sys.stderr)
  return result


def _cross_validate(config, workdir, folds, stop):
  """Trains and measures what is not done yet, one fold after the other.

  Returns:
    {folds: [{fold, workdir, step, parameters, state_digest, train: {loss, top1,
    macro_precision, ..., examples}, validation: the same}], mean: {train,
    validation}, deviation: the sample standard deviation over the folds}.
  """
  runs = {}
  for fold in range(folds):
    own = config.copy_and_resolve_references()
    own.data.folds, own.data.fold = folds, fold
    runs[workdir / f'fold_{fold:02d}'] = own, _open(own)[1]

  def measure(config, folder, record, trained):
    return _measure(config, folder, record, stop)

  found = repeat.train_each(runs, tuple(_SPLITS), measure, stop)
  results = [{'fold': fold, **one} for fold, one in enumerate(found)]

  statistic = {'mean': statistics.fmean, 'deviation': statistics.stdev}
  over_folds = {
    name: {
      split: {
        key: function([result[split][key] for result in results])
        for key in results[0][split]
      }
      for split in _SPLITS
    }
    for name, function in statistic.items()
  }
  return {'folds': results, **over_folds}


def _open(config):  # both sides of a fold
  from alexnet_jax.training import build

  loaders = {split: build.make_loader(config, split) for split in _SPLITS}
  sources = (loader.source for loader in loaders.values())
  return loaders, build.data_record(config, *sources)


def _measure(config, folder, record, stop):
  from alexnet_jax.evaluation import evaluate, loading
  from alexnet_jax.training import resume, state as state_lib

  run = loading.load_network(str(folder), data_path=config.data.path)
  loaders, now = _open(run.config)
  # While it trained, they may have changed.
  resume.check_data_record(folder, record, now)
  measured = state_lib.summarize(run.state)
  for split, loader in loaders.items():
    seen = evaluate.measure_all(run, loader, on_batch=lambda _: stop.check())
    measured[split] = {
      'examples': int(seen.predictions.counts.sum()),
      **{key.removeprefix('eval/'): v for key, v in seen.values.items()},
    }
  return measured


def _show(result):
  from alexnet_jax.evaluation import page

  keys = [(split, name) for split in _SPLITS for name in _SHOWN]
  rows = [
    (str(fold['fold']), *(fold[split][name] for split, name in keys))
    for fold in result['folds']
  ]
  mean, deviation = result['mean'], result['deviation']
  cells = (f'{mean[s][n]:.4f}\n± {deviation[s][n]:.4f}' for s, n in keys)
  rows.append(('mean\n± sd', *cells))
  columns = [f'{_SPLITS[split]}\n{_SHOWN[name]}' for split, name in keys]
  title = 'measured on the folds of the training and on the one held out'
  page.show_table(page.Table(title, ('fold', *columns), rows))


def draw_box_plots(result: dict):
  """Draws top-1 and macro precision of the folds, out of the result."""
  import numpy as np

  from alexnet_jax.evaluation import figures

  figure, axes = figures.panels(2)
  axes[1].sharey(axes[0])
  folds = result['folds']
  # Beside one another, so that equal ones are seen.
  shifts = np.linspace(-0.08, 0.08, len(folds))
  for axis, name in zip(axes, ('top1', 'macro_precision'), strict=True):
    values = [[fold[split][name] for fold in folds] for split in _SPLITS]
    labels = list(_SPLITS.values())  # no outliers: every fold has its dot
    axis.boxplot(values, tick_labels=labels, widths=0.45, showfliers=False)
    for position, points in enumerate(values, 1):
      axis.plot(position + shifts, points, 'o', color='C0', alpha=0.6)
    axis.set(title=_SHOWN[name])
  figure.suptitle('a dot for each fold; box: quartiles, line: median')
  return figure


if __name__ == '__main__':
  sys.exit(main())
