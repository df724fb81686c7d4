"""Starts a run of several processes on this machine, and ends them together.

    python launch/local.py --processes 2 --devices_per_process 2 -- \
      --config configs/quickstart.py

What stands behind -- goes to every `python -m alexnet_jax.main`. Standard
output is that of process 0; its messages are shown and, like those of the
others, kept in log files. It needs nothing but the standard library.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile

import children  # beside this file, which is started by its path

_EXIT_USER = 2  # something to mend, as of the training command
_OWN_FLAGS = ('--coordinator', '--process_index', '--process_count')
_DEVICES = 'xla_force_host_platform_device_count'
_EPILOG = """\
Exit codes: 0 done; otherwise that of the process that failed first, or 75 if a
signal killed it. After 75 the same command goes on from the newest checkpoint.
SIGTERM and Ctrl-C are passed on to all processes."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  options, arguments = _parse(sys.argv[1:] if argv is None else argv)
  try:
    environments = make_environments(
      os.environ,
      options.processes,
      devices=options.devices_per_process,
      gpus=options.gpus_per_process,
    )
    commands = make_commands(options.processes, arguments, free_port())
    log_dir = _make_log_dir(options.log_dir)
    code = children.run(commands, environments, log_dir, grace=options.grace)
  except (ValueError, OSError) as error:
    children.say(f'error: {error}')
    return _EXIT_USER
  if code:
    children.say(f'logs: {log_dir}')
  elif not options.log_dir:
    shutil.rmtree(log_dir)
  return code


def make_commands(
  count: int, arguments: Sequence[str], port: int
) -> list[list[str]]:
  """The command of every process; process 0 will listen on the port."""
  command = [sys.executable, '-m', 'alexnet_jax.main', *arguments]
  place = ['--coordinator', f'127.0.0.1:{port}', '--process_count', str(count)]
  return [
    [*command, *place, '--process_index', str(index)] for index in range(count)
  ]


def make_environments(
  environ: Mapping[str, str],
  count: int,
  *,
  devices: int | None = None,
  gpus: int | None = None,
) -> list[dict[str, str]]:
  """The environment of every process.

  Args:
    environ: of the launcher.
    count: number of processes.
    devices: of the CPU that JAX is to show to each process.
    gpus: each process sees so many of its own.

  Raises:
    ValueError: if CUDA_VISIBLE_DEVICES names fewer GPUs than that takes.
  """
  common = dict(environ)
  if devices:
    flags = re.sub(rf'--{_DEVICES}(=\S*)?', '', environ.get('XLA_FLAGS', ''))
    common['XLA_FLAGS'] = f'{flags.strip()} --{_DEVICES}={devices}'.strip()
    common['JAX_PLATFORMS'] = 'cpu'
    common.pop('JAX_NUM_CPU_DEVICES', None)  # it would win over the flag
  if not gpus:
    return [common] * count
  visible = _visible_gpus(environ, count * gpus)
  return [
    common | {'CUDA_VISIBLE_DEVICES': ','.join(visible[i * gpus :][:gpus])}
    for i in range(count)
  ]


def free_port() -> int:
  """A port of this machine that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def _visible_gpus(environ, needed):
  named = environ.get('CUDA_VISIBLE_DEVICES')
  if named is None:
    return [str(number) for number in range(needed)]
  visible = [name.strip() for name in named.split(',') if name.strip()]
  if len(visible) < needed:
    raise ValueError(
      f'{needed} GPUs are needed, but CUDA_VISIBLE_DEVICES={named} names'
      f' {len(visible)}'
    )
  return visible


def _make_log_dir(given):
  if not given:
    return pathlib.Path(tempfile.mkdtemp(prefix='alexnet_jax_logs_'))
  folder = pathlib.Path(given)
  folder.mkdir(parents=True, exist_ok=True)
  return folder


def _parse(argv):
  argv = list(argv)
  end = argv.index('--') if '--' in argv else len(argv)
  parser = _parser()
  options, unknown = parser.parse_known_args(argv[:end])
  if unknown:
    parser.error(
      f'{" ".join(unknown)}: arguments of the training command stand behind --'
    )
  arguments = argv[end + 1 :]
  for argument in arguments:
    if argument.partition('=')[0] in _OWN_FLAGS:
      parser.error(f'{argument} is given to the processes by this launcher')
  return options, arguments


def _parser():
  parser = argparse.ArgumentParser(
    prog='python launch/local.py',
    usage='%(prog)s --processes N [options] -- [ARGUMENTS OF THE TRAINING]',
    description='Trains with several processes on this machine.',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--processes',
    required=True,
    type=_at_least_one,
    metavar='N',
    help='how many to start',
  )
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument(
    '--devices_per_process',
    type=_at_least_one,
    metavar='D',
    help='train on the CPU, which shows D devices to each process',
  )
  kind.add_argument(
    '--gpus_per_process',
    type=_at_least_one,
    metavar='G',
    help='each process sees G of the visible GPUs',
  )
  parser.add_argument(
    '--log_dir',
    metavar='DIR',
    help='where the log files are written anew (default: a temporary folder,'
    ' which is removed if all went well)',
  )
  parser.add_argument(
    '--grace',
    type=_seconds,
    default=120.0,
    metavar='SECONDS',
    help='how long the others may take to end by themselves when one failed'
    ' (default: %(default)g)',
  )
  return parser


def _at_least_one(text):
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text} is no number from 1')
  return int(text)


def _seconds(text):
  try:
    seconds = float(text)
  except ValueError:
    seconds = -1.0
  if not 0 <= seconds < float('inf'):
    raise argparse.ArgumentTypeError(f'{text} is no number of seconds')
  return seconds


if __name__ == '__main__':
  sys.exit(main())
