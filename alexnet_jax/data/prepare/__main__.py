"""The commands that prepare data sets: python -m alexnet_jax.data.prepare."""

import argparse
import sys

from alexnet_jax import cli
from alexnet_jax.data.prepare import check
from alexnet_jax.data.prepare import raw
from alexnet_jax.data.prepare import resize
from alexnet_jax.data.prepare import tfds


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.data.prepare', description='Prepares data sets.'
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  for module in (tfds, resize, raw, check):
    module.add_arguments(commands)
  for subparser in commands.choices.values():
    cli.add_json(subparser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments = _arguments(argv)
  return cli.run(
    lambda: arguments.work(arguments),
    json_output=arguments.json,
    uses_jax=False,
    exit_code=getattr(arguments, 'exit_code', None),
  )


if __name__ == '__main__':
  sys.exit(main())
