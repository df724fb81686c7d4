"""Measures speed: python -m alexnet_jax.bench COMMAND."""

import argparse
import sys

from alexnet_jax import cli
from alexnet_jax.bench import data
from alexnet_jax.bench import end_to_end
from alexnet_jax.bench import plan
from alexnet_jax.bench import step


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.bench',
    description='Measures speed. --config.KEY=VALUE changes the recipe.',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  for module in (data, end_to_end, plan, step):
    module.add_arguments(commands)
  arguments, overrides = parser.parse_known_args(argv)
  return cli.run(
    lambda: arguments.work(arguments, overrides),
    json_output=arguments.json,
    exit_code=getattr(arguments, 'exit_code', None),
  )


if __name__ == '__main__':
  sys.exit(main())
