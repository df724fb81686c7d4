"""Trains: python -m alexnet_jax.main --config FILE [--config.key=value ...]."""

import os
import sys

from alexnet_jax import cli, errors, files, runtime

_EPILOG = """\
Any key of the config can be changed: --config.global_batch_size=64
(alexnet_jax/config.py lists them all). Started again with the same workdir, a
run goes on from its newest checkpoint. Exit codes: 0 done, 2 something to fix
in config, data or arguments, 75 interrupted and saved or another process lost,
1 anything else."""


def _parse(argv):
  text = 'Trains AlexNet, or another of its networks.'
  parser = cli.make_parser('main', text, _EPILOG, abbreviations=False)
  cli.add_recipe(parser)
  text = "the run's folder (default: runs/ and the recipe's name)"
  parser.add_argument('--workdir', type=cli.path, metavar='DIR', help=text)
  for name, text in (
    ('summary', "show the network's table and stop"),
    ('dry_run', 'one train step, evaluation batch, save and restore; stop'),
    ('profile', "trace steps 10 to 20 from now into the run's folder"),
  ):
    parser.add_argument(f'--{name}', action='store_true', help=text)
  cli.add_json(parser)
  group = parser.add_argument_group(
    'several processes',
    'SLURM, Open MPI and the environment (JAX_COORDINATOR_ADDRESS,'
    ' JAX_NUM_PROCESSES, JAX_PROCESS_ID or JOB_COMPLETION_INDEX) can give the'
    ' first three; see launch/',
  )
  group.add_argument(
    '--coordinator', metavar='HOST:PORT', help='where process 0 listens'
  )
  for name, metavar, default, text in (
    ('process_index', 'I', None, 'index of this process, from 0'),
    ('process_count', 'N', None, 'processes in all; 1: no cluster is sought'),
    ('start_timeout', 'S', 300, 'seconds to wait for the others'),
    ('heartbeat_timeout', 'S', 100, 'seconds after which a silent one is lost'),
  ):
    text += ' (default: %(default)s)' if default else ''
    group.add_argument(
      f'--{name}', type=int, default=default, metavar=metavar, help=text
    )
  return parser.parse_known_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments, overrides = _parse(argv)
  # From here on a signal is remembered; jax is imported after that.
  from alexnet_jax.training import guards

  stop = guards.StopSignal()
  if not arguments.summary:
    stop.install()

  from alexnet_jax.training import distributed

  code = errors.EXIT_FAILURE
  try:
    code = cli.run(
      lambda: _work(arguments, overrides, stop), json_output=arguments.json
    )
  finally:
    distributed.exit_process(code)
  return code


def _work(arguments, overrides, stop):
  from alexnet_jax import validation

  if arguments.profile and (arguments.summary or arguments.dry_run):
    problem = '--profile needs a run: leave out --summary, --dry_run'
    raise errors.UserError(problem)
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  if arguments.summary:
    from alexnet_jax.evaluation import summary

    return summary.show(config)
  from alexnet_jax.training import distributed

  detected = distributed.detect(
    os.environ,
    coordinator=arguments.coordinator,
    process_index=arguments.process_index,
    process_count=arguments.process_count,
  )
  with distributed.joined(
    detected,
    start_timeout=arguments.start_timeout,
    heartbeat_timeout=arguments.heartbeat_timeout,
    check=stop.check,
  ) as processes:
    return _train(arguments, config, stop, processes)


def _train(arguments, config, stop, processes):
  from alexnet_jax import config as config_lib
  from alexnet_jax.training import loop, resume

  console = cli.Console(None if processes.is_first else cli.NullStream())
  resume.check_processes(config, console)
  workdir = (
    arguments.workdir or f'runs/{config_lib.recipe_name(arguments.config)}'
  )
  if arguments.dry_run:
    if processes.is_first:
      files.refuse_unusable(workdir)
    return loop.dry_run(config, stop, console)
  hooks = loop.Hooks(profile=arguments.profile, age=runtime.process_seconds())
  result = loop.train_and_evaluate(config, workdir, stop, console, hooks)
  if processes.is_first:
    from alexnet_jax import run

    run.draw_report(config, workdir, stop.check)
  return result


if __name__ == '__main__':
  sys.exit(main())
