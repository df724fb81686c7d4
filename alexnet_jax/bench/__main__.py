"""Measures speed: python -m alexnet_jax.bench COMMAND."""

import argparse
import importlib
import sys

from alexnet_jax import cli

_COMMANDS = {
  'data': 'the data pipeline beside others and beside its limits',
  'end_to_end': 'bare step, loader and training loop side by side',
  'plan': 'memory, bytes and bounds of a step on a GPU that is not there',
  'step': 'the train step alone, and PyTorch and Keras beside it',
}


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.bench',
    description='Measures speed. --config.KEY=VALUE changes the recipe.',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  for name, text in _COMMANDS.items():
    command = commands.add_parser(name, help=text, allow_abbrev=False)
    if name in argv:
      module = importlib.import_module(f'alexnet_jax.bench.{name}')
      command.description = module.DESCRIPTION
      cli.add_json(command)
      module.add_arguments(command)
      command.set_defaults(work=module.run)
  arguments, overrides = parser.parse_known_args(argv)
  return cli.run(
    lambda: arguments.work(arguments, overrides),
    json_output=arguments.json,
    exit_code=getattr(arguments, 'exit_code', None),
  )


if __name__ == '__main__':
  sys.exit(main())
