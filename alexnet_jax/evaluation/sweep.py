"""Searches for good values of config keys.

python -m alexnet_jax.evaluation.sweep --config FILE --workdir DIR --trials 20 \
  --param optimizer.learning_rate=1e-4..1e-1:log
"""

import sys

from alexnet_jax import cli, errors
from alexnet_jax.config import MONITORS

_EPILOG = """\
A SPEC is LOW..HIGH, LOW..HIGH:log, LOW..HIGH:step=STEP or A|B|C:
  --param 'optimizer.learning_rate=1e-4..1e-1:log' --param 'seed=1..3'
  --param 'global_batch_size=64..256:step=64' --param 'optimizer.name=sgd|adam'
Every trial is a run of its own in DIR/trial_0000, DIR/trial_0001 and so on, and
keeps its checkpoints (8 to 16 bytes a parameter). Its value is that of the
monitor in the state that the run ends with. Killed at any moment and started
again, the same command goes on; more --trials continue a sweep that is done.
Any other key of the config can be changed: --config.num_epochs=5.0."""


def main(argv=None) -> int:
  """Runs the command; returns its exit code: 1 if no trial came to its end."""
  text = 'Searches for good values of config keys.'
  parser = cli.make_parser('evaluation.sweep', text, _EPILOG, False)
  add = parser.add_argument
  cli.add_recipe(parser)
  text = "the sweep's folder"
  add('--workdir', required=True, type=cli.path, metavar='DIR', help=text)
  text = 'number of trials in all (default: %(default)s)'
  add('--trials', type=int, default=20, metavar='N', help=text)
  text = 'a key of the config and the values to try; once for every key'
  add('--param', action='append', default=[], metavar='KEY=SPEC', help=text)
  text = 'what a trial is judged by (default: %(default)s): %(choices)s'
  named = {'choices': MONITORS, 'metavar': 'MEASURE'}
  add('--monitor', default='eval/top1', help=text, **named)
  text = (
    'median (default) ends a trial whose best value so far is worse than the'
    ' median of what the trials before it had at the same evaluation; none ends'
    ' none'
  )
  add('--pruner', choices=('median', 'none'), default='median', help=text)
  add('--seed', type=int, default=0, help='of the search (default: 0)')
  cli.add_json(parser)
  arguments, overrides = parser.parse_known_args(argv)
  # From here on a signal is remembered; jax is imported after that.
  from alexnet_jax.training import guards

  stop = guards.StopSignal()
  stop.install()

  def work():
    try:
      import optuna  # noqa: F401
    except ImportError:
      advice = errors.how_to_install('sweep')
      raise errors.UserError(f'a sweep needs optuna: {advice}') from None
    from alexnet_jax.evaluation import study

    return study.sweep(arguments, overrides, stop)

  return cli.run(
    work,
    json_output=arguments.json,
    exit_code=lambda result: 0 if result['best'] else errors.EXIT_FAILURE,
  )


if __name__ == '__main__':
  sys.exit(main())
