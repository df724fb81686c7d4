"""Cross-validation: trains and measures a recipe once for every fold.

python -m alexnet_jax.evaluation.crossval --config FILE --folds 10
"""

import json
import pathlib
import statistics
import sys

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax import files
from alexnet_jax.errors import UserError

_MEASURES_FILE = 'measures.json'  # in the folder of a fold
_DEFAULT_FOLDS = 10
_SPLITS = {'train': 'training', 'validation': 'held out'}
_SHOWN = {'loss': 'loss', 'top1': 'top-1', 'macro_precision': 'macro precision'}
_EPILOG = """\
Every fold is a run of its own in DIR/fold_00, DIR/fold_01 and so on, trained
with config.data.folds and config.data.fold on all folds but one, and measured
in its final state on both sides. It keeps its checkpoints (8 to 16 bytes a
parameter). Killed at any moment and started again, the same command goes on;
folds that are done are not touched. Any key of the config can be changed:
--config.global_batch_size=64."""


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  text = 'Trains and measures a recipe once for every fold.'
  parser = cli.make_parser('evaluation.crossval', text, _EPILOG, False)
  add = parser.add_argument
  cli.add_recipe(parser)
  text = f'number of folds (default: config.data.folds, or {_DEFAULT_FOLDS})'
  add('--folds', type=int, metavar='K', help=text)
  text = "the folder (default: runs/crossval_ and the recipe's name)"
  add('--workdir', type=cli.path, metavar='DIR', help=text)
  cli.add_json(parser)
  arguments, overrides = parser.parse_known_args(argv)
  # From here on a signal is remembered; jax is imported after that.
  from alexnet_jax.training import guards

  stop = guards.StopSignal()
  stop.install()
  return cli.run(
    lambda: _work(arguments, overrides, stop), json_output=arguments.json
  )


def _work(arguments, overrides, stop):
  """Makes what is missing; returns the command's result."""
  from alexnet_jax import validation
  from alexnet_jax.evaluation import figures

  config = validation.load_config([f'--config={arguments.config}', *overrides])
  asked, configured = arguments.folds, config.data.folds
  if asked and configured and asked != configured:
    raise UserError(
      f'--folds is {asked}, config.data.folds {configured}: give one of them'
    )
  folds = configured or _DEFAULT_FOLDS if asked is None else asked
  if folds < 2:
    raise UserError(f'--folds is {folds}; it must be at least 2')
  name = f'runs/crossval_{config_lib.recipe_name(arguments.config)}'
  workdir = pathlib.Path(arguments.workdir or name)
  if workdir.is_dir():
    files.refuse_links_in(workdir)
  result = _cross_validate(config, workdir, folds, stop)
  _write_json(workdir / 'crossval.json', result)
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
  import jax

  from alexnet_jax.training import loop

  plan, results, console = [], [], cli.Console()
  for fold in range(folds):
    own = config.copy_and_resolve_references()
    own.data.folds, own.data.fold, own.report = folds, fold, False
    folder = workdir / f'fold_{fold:02d}'
    # Before anything is trained, and also of the folds that are done.
    _, record = _open(own)
    plan.append((own, folder, record, _stored(own, folder, record)))
  for fold, (own, folder, record, measured) in enumerate(plan):
    stop.check()
    done = ' is done' if measured else ''
    console.line(f'fold {fold} ({fold + 1} of {folds}){done}: {folder}')
    if not measured:
      loop.train_and_evaluate(own, str(folder), stop, console)
      measured = _measure(own, folder, record, stop)
      _write_json(folder / _MEASURES_FILE, measured)
      jax.clear_caches()  # or the programs of all folds would pile up
    # The rest is what only a later start needs.
    shown = {k: v for k, v in measured.items() if k not in ('config', 'data')}
    results.append({'fold': fold, 'workdir': str(folder), **shown})

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


def _stored(config, folder, record):
  """Reads what was measured of a fold before; None if that is to be done.

  Raises:
    UserError: if the fold was trained with another config or on other data.
  """
  from alexnet_jax.training import resume

  sides = {split: {str: int | float} for split in _SPLITS}
  try:
    shape = {'config': dict, 'data': dict, **sides}
    stored = files.read_json(folder / _MEASURES_FILE, shape)
    trained = config_lib.from_dict(stored['config'])
  except (FileNotFoundError, UserError):
    return None
  resume.check_config(config, folder, trained)
  resume.check_data_record(folder, stored['data'], record)
  # A run may be made longer. All else that may change leaves it as it is.
  lengths = ('num_epochs', 'num_steps')
  longer = any(stored['config'][key] != config[key] for key in lengths)
  return None if longer else stored


def _measure(config, folder, record, stop):
  from alexnet_jax.evaluation import evaluate
  from alexnet_jax.evaluation import loading
  from alexnet_jax.training import resume
  from alexnet_jax.training import state as state_lib

  run = loading.load_network(str(folder), data_path=config.data.path)
  loaders, now = _open(run.config)
  # While it trained, they may have changed.
  resume.check_data_record(folder, record, now)
  measured = {'config': config.to_dict(), 'data': record}
  measured |= state_lib.summarize(run.state)
  for split, loader in loaders.items():
    seen = evaluate.measure_all(run, loader, on_batch=lambda _: stop.check())
    measured[split] = {
      'examples': int(seen.predictions.counts.sum()),
      **{key.removeprefix('eval/'): v for key, v in seen.values.items()},
    }
  return measured


def _write_json(path, value):
  with files.replaced_file(path) as temporary:
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')


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
