"""All commands as one: alexnet-jax COMMAND, python -m alexnet_jax COMMAND."""

import argparse
import runpy
import sys

_COMMANDS = {
  'train': ('main', 'trains a network, or goes on with a run'),
  'evaluate': ('evaluation.evaluate', 'measures a run'),
  'predict': ('predict', 'classifies images with a run'),
  'features': ('evaluation.features', 'writes outputs of layers for images'),
  'prepare': ('data.prepare', 'checks a data set, or writes a faster one'),
  'report': ('evaluation.report', 'draws the page of a run'),
  'paper': ('evaluation.paper', "draws the paper's figures from a run"),
  'visualize': ('evaluation.visualize', 'shows what the layers of a run see'),
  'compare': ('evaluation.compare', 'compares runs'),
  'ensemble': ('evaluation.ensemble', 'measures the mean of several runs'),
  'seeds': ('evaluation.seeds', 'trains a recipe with several seeds'),
  'crossval': ('evaluation.crossval', 'cross-validates a recipe'),
  'sweep': ('evaluation.sweep', 'searches for good values of keys'),
  'load': ('interop.load', 'makes a run of weights of elsewhere'),
  'save': ('interop.save', 'writes weights for other frameworks'),
  'verify': ('interop.verify', 'checks what saved weights say of themselves'),
  'export': ('interop.export', 'writes a run as a program'),
  'bench': ('bench', 'measures speed beside others'),
}


def main() -> None:
  """Runs a command as `python -m` does, and ends with its exit code."""
  lines = [f'  {name:9} {text}' for name, (_, text) in _COMMANDS.items()]
  parser = argparse.ArgumentParser(
    prog='alexnet-jax',
    usage='%(prog)s COMMAND [arguments of the command]',
    description='\n'.join(['commands, each with --help:', *lines]),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('command', choices=_COMMANDS, help=argparse.SUPPRESS)
  given = parser.parse_args(sys.argv[1:2] or ['--help'])
  module, _ = _COMMANDS[given.command]
  del sys.argv[1]
  runpy.run_module(f'alexnet_jax.{module}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
