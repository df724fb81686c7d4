"""Trains: python -m alexnet_jax.main --config FILE [--config.key=value ...]."""

import argparse
import sys

from alexnet_jax import command

_EPILOG = """\
Any key of the config can be changed: --config.global_batch_size=64
(alexnet_jax/config.py lists them all). Started again with the same workdir, a
run goes on from its newest checkpoint. Exit codes: 0 done, 2 something to mend
in config, data or arguments, 75 interrupted and saved, 1 anything else."""


def _parse(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.main',
    description='Trains AlexNet, or another of its networks.',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  command.add_recipe(parser)
  parser.add_argument(
    '--workdir',
    metavar='DIR',
    help="the run's folder (default: runs/ and the recipe's name)",
  )
  parser.add_argument(
    '--summary', action='store_true', help="show the network's table and stop"
  )
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='one train step, one evaluation batch, one save and restore; stop',
  )
  command.add_json(parser)
  return parser.parse_known_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments, overrides = _parse(argv)
  # From here on a signal is remembered; jax is imported after that.
  from alexnet_jax.training import guards

  stop = guards.StopSignal()
  if not arguments.summary:
    stop.install()

  return command.run(
    lambda: _work(arguments, overrides, stop), json_output=arguments.json
  )


def _work(arguments, overrides, stop):
  from alexnet_jax import recipes

  config = recipes.load_config([f'--config={arguments.config}', *overrides])
  if arguments.summary:
    from alexnet_jax.evaluation import summary

    return summary.show(config)
  from alexnet_jax.training.console import Console

  if arguments.dry_run:
    from alexnet_jax.training import dry_run

    return dry_run.run(config, stop, Console())
  from alexnet_jax.training import loop

  workdir = arguments.workdir or f'runs/{recipes.name(arguments.config)}'
  result = loop.train_and_evaluate(config, workdir, stop, Console())
  if config.report:
    _report(workdir, config.data.path, stop)
  return result


def _report(workdir, data_path, stop):
  """Tables and pictures of a run that is done."""
  from alexnet_jax.errors import UserError
  from alexnet_jax.evaluation import report

  try:
    result = report.write(
      workdir, data_path=data_path, progress=lambda done: stop.check()
    )
    report.show(result)
  except UserError as error:
    # It could not be drawn, but the run is complete.
    print(f'no report: {error}', file=sys.stderr)


if __name__ == '__main__':
  sys.exit(main())
