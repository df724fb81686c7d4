"""Searches for good values of config keys.

python -m alexnet_jax.evaluation.sweep --config FILE --workdir DIR --trials 20 \
  --param optimizer.learning_rate=1e-4..1e-1:log
"""

import argparse
import pathlib
import sys

from alexnet_jax import cli

PRUNERS = ('median', 'none')
_EPILOG = """\
A SPEC is LOW..HIGH (with :log by the logarithm), A|B|C, or, for keys that take
a tuple, FEWEST..MOST*LOW..HIGH for the entries:
  --param 'optimizer.learning_rate=1e-4..1e-1:log'
  --param 'optimizer.name=sgd|adam|rmsprop'
  --param 'model.hidden=1..3*64..1024:log'
Every trial is a run of its own in DIR/trial_0000, DIR/trial_0001 and so on; its
value is that of the monitor in the state that the run ends with (the last, or
the best where config.early_stopping restores it). What was tried stands in
DIR/study.db. Killed at any moment and started again, the same command goes on
with the trial that was under way; more --trials continue a sweep that is done.
The same command makes the same trials. Any other key of the config can be
changed: --config.num_epochs=5.0.

Every trial keeps its checkpoints, config.checkpoint.keep of them and the best.
A checkpoint has 8 bytes a parameter (the parameters and the momentum; 12 with
adam and rmsprop), and 4 more with config.ema_decay."""


def _parse(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.sweep',
    description='Searches for good values of config keys.',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  cli.add_recipe(parser)
  parser.add_argument(
    '--workdir', required=True, metavar='DIR', help="the sweep's folder"
  )
  parser.add_argument(
    '--trials',
    type=int,
    default=20,
    metavar='N',
    help='number of trials in all (default: %(default)s)',
  )
  parser.add_argument(
    '--param',
    action='append',
    default=[],
    metavar='KEY=SPEC',
    help='a key of the config and the values to try; once for every key',
  )
  parser.add_argument(
    '--monitor',
    default='eval/top1',
    help='what a trial is judged by (default: %(default)s)',
  )
  parser.add_argument(
    '--mode',
    choices=('min', 'max'),
    help='whether less or more is better (default: min of a loss, else max)',
  )
  parser.add_argument(
    '--pruner',
    choices=PRUNERS,
    default='median',
    help='median (default) ends a trial whose best value so far is worse than'
    ' the median of what the trials before it had at the same evaluation; none'
    ' ends none',
  )
  parser.add_argument(
    '--seed', type=int, default=0, help='of the search (default: 0)'
  )
  cli.add_json(parser)
  return parser.parse_known_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code: 1 if no trial came to its end."""
  arguments, overrides = _parse(argv)
  # From here on a signal is remembered; jax is imported after that.
  from alexnet_jax.training import guards

  stop = guards.StopSignal()
  stop.install()
  from alexnet_jax import errors

  return cli.run(
    lambda: _work(arguments, overrides, stop),
    json_output=arguments.json,
    exit_code=lambda result: (
      errors.EXIT_DONE if result['best'] else errors.EXIT_FAILURE
    ),
  )


def _work(arguments, overrides, stop):
  from alexnet_jax import config as config_lib
  from alexnet_jax import files
  from alexnet_jax import validation
  from alexnet_jax.errors import UserError
  from alexnet_jax.evaluation import search_space
  from alexnet_jax.evaluation import sweep_report
  from alexnet_jax.evaluation import sweep_study
  from alexnet_jax.evaluation import sweep_trials

  sweep_study.import_optuna()
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  config.report = False
  space = search_space.parse(arguments.param, config)
  monitor = arguments.monitor
  if monitor not in config_lib.MONITORS:
    raise UserError(
      f'--monitor is {monitor!r}, not one of {config_lib.MONITORS}'
    )
  for name, least in (('trials', 1), ('seed', 0)):
    if (value := getattr(arguments, name)) < least:
      raise UserError(f'--{name} is {value}; it must be at least {least}')
  made_with = sweep_study.description(
    config,
    space,
    data=sweep_trials.shared_data(config, space),  # what is wrong with it now
    monitor=monitor,
    mode=arguments.mode or ('min' if monitor == 'eval/loss' else 'max'),
    pruner=arguments.pruner,
    seed=arguments.seed,
  )
  workdir = pathlib.Path(arguments.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  busy = f'another sweep is under way in {workdir}; wait for it, or end it'
  with files.lock(workdir, busy):
    study = sweep_study.open_study(workdir, made_with)
    sweep_trials.Sweep(
      config, space, workdir, monitor, study, stop, cli.Console()
    ).run(arguments.trials, arguments.seed)
    retrain = ['--config', arguments.config, *overrides]
    return sweep_report.report(study, space, workdir, monitor, retrain)


if __name__ == '__main__':
  sys.exit(main())
