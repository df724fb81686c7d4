"""Starts a run of several processes on this machine, and ends them together.

    python launch/local.py --processes 2 --devices_per_process 2 -- \
      --config configs/quickstart.py

The arguments after -- go to every `python -m alexnet_jax.main`. Standard output
is that of process 0. The program's own messages of the others begin with their
names; what libraries print, and errors of the config, do not.
"""

import argparse
import contextlib
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

_EXIT_USER = 2  # the user can fix it, as in the training command
_EXIT_INTERRUPTED = 75  # the same command continues the run
_KILL_AFTER = 10.0  # seconds between SIGTERM and SIGKILL, at most
_OWN_FLAGS = ('--coordinator', '--process_index', '--process_count')
_DEVICES = 'xla_force_host_platform_device_count'
_EPILOG = """\
Exit codes: 0 done; otherwise that of the process that failed first, or 75 if a
signal ended it. SIGTERM and Ctrl-C are passed on to all processes."""


def main() -> int:
  """Runs the command; returns its exit code."""
  options, arguments = _parse(sys.argv[1:])
  try:
    count = options.processes
    environments = _environments(count, options.devices, options.gpus)
    return _run(_commands(arguments, count), environments, options.grace)
  except (ValueError, OSError) as error:
    _say(f'error: {error}')
    return _EXIT_USER


def _environments(count, devices, gpus):
  """Returns the environment of every process; 0 leaves devices as they are."""
  common = dict(os.environ)
  if devices:
    flags = re.sub(rf'--{_DEVICES}(=\S*)?', '', common.get('XLA_FLAGS', ''))
    common['XLA_FLAGS'] = f'{flags.strip()} --{_DEVICES}={devices}'.strip()
    common['JAX_PLATFORMS'] = 'cpu'
    common.pop('JAX_NUM_CPU_DEVICES', None)  # it would win over the flag
  if not gpus:
    return [common] * count
  needed = count * gpus
  named = common.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(needed))))
  visible = [name.strip() for name in named.split(',') if name.strip()]
  if len(visible) < needed:
    raise ValueError(
      f'{needed} GPUs are needed, but CUDA_VISIBLE_DEVICES={named} names'
      f' {len(visible)}'
    )
  # Without it JAX takes the CPU where it finds no GPU.
  platforms = common.get('JAX_PLATFORMS') or 'cuda,cpu'
  if not {'cuda', 'gpu'} & set(platforms.split(',')):
    raise ValueError(f'JAX_PLATFORMS={platforms} in the environment has no GPU')
  common['JAX_PLATFORMS'] = platforms
  return [
    common | {'CUDA_VISIBLE_DEVICES': ','.join(visible[i * gpus :][:gpus])}
    for i in range(count)
  ]


def _run(commands, environments, grace):
  """Starts the processes and waits for all, leaves none; returns the code."""
  # (index, exit code) of a process that ended, (None, number) of a signal; of a
  # kind that handlers of signals may put into.
  events = queue.SimpleQueue()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: events.put((None, number)))
  processes = []
  try:
    for command, environment in zip(commands, environments, strict=True):
      processes.append(_start(len(processes), command, environment, events))
    code = _wait(processes, events, grace)
  finally:
    for process in processes:
      if process.poll() is None:
        _kill_group(process)
        process.wait()
  return _EXIT_INTERRUPTED if code < 0 else code


def _free_port():
  """Returns a port that is free, and that the system gives to nobody else."""
  limits = pathlib.Path('/proc/sys/net/ipv4/ip_local_port_range')
  least = int(limits.read_text().split()[0]) if limits.exists() else 32768
  while True:
    port = random.randrange(1024, max(least, 2048))
    with contextlib.suppress(OSError), socket.create_server(('', port)):
      return port


def _commands(arguments, count):
  command = [sys.executable, '-m', 'alexnet_jax.main', *arguments]
  if shutil.which('setpriv'):  # kills them if the launcher itself is killed
    command = ['setpriv', '--pdeathsig', 'KILL', *command]
  command += ['--coordinator', f'127.0.0.1:{_free_port()}']
  command += ['--process_count', str(count), '--process_index']
  return [[*command, str(index)] for index in range(count)]


def _start(index, command, environment, events):
  process = subprocess.Popen(
    command,
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=sys.stderr if index else None,
    start_new_session=True,  # or Ctrl-C in a terminal would come twice
  )

  def follow():
    code = process.wait()
    _kill_group(process)  # what it started and left behind
    events.put((index, code))

  threading.Thread(target=follow, daemon=True).start()
  return process


def _kill_group(process):
  with contextlib.suppress(OSError):  # no such group: nobody is left
    os.killpg(process.pid, signal.SIGKILL)


def _wait(processes, events, grace):
  """Returns the exit code of the process that failed first, or 0."""
  running = dict(enumerate(processes))
  first_code, deadline, means = 0, None, [signal.SIGTERM, signal.SIGKILL]

  def names():
    return ', '.join(f'process {index}' for index in running)

  while running:
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    try:
      index, value = events.get(timeout=left)
    except queue.Empty:
      index, value = None, means.pop(0)
      deadline = time.monotonic() + min(grace, _KILL_AFTER) if means else None
      _say(f'{names()}: still running, gets {value.name}')
    if index is None:
      for process in running.values():
        process.send_signal(value)
      continue
    del running[index]
    if value not in (0, _EXIT_INTERRUPTED):  # after 75 the process has said why
      how = f'exit code {value}' if value > 0 else signal.strsignal(-value)
      _say(f'process {index} ended: {how}')
    if value and not first_code:
      first_code, deadline = value, time.monotonic() + grace
      if running and value != _EXIT_INTERRUPTED:
        _say(f'{names()}: {grace:g} s left to end')
  return first_code


def _say(text):
  with contextlib.suppress(OSError):  # the run goes on if nobody reads this
    os.write(2, f'{text}\n'.encode(errors='replace'))


def _parse(argv):
  parser = argparse.ArgumentParser(
    prog=f'python {sys.argv[0]}',
    usage='%(prog)s --processes N [options] -- [ARGUMENTS OF THE TRAINING]',
    description='Trains with several processes on this machine.',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  count = {'type': _at_least_one, 'default': 0, 'metavar': 'N'}
  add('--processes', required=True, **count)
  kind = parser.add_mutually_exclusive_group()
  text = 'train on the CPU, which shows N devices to each process'
  kind.add_argument('--devices_per_process', dest='devices', help=text, **count)
  text = 'each process sees N of the visible GPUs'
  kind.add_argument('--gpus_per_process', dest='gpus', help=text, **count)
  text = 'seconds for others to end once one failed (default: %(default)g)'
  add('--grace', type=float, default=120.0, metavar='S', help=text)
  end = argv.index('--') if '--' in argv else len(argv)
  options, unknown = parser.parse_known_args(argv[:end])
  if unknown:
    parser.error(f'{" ".join(unknown)}: arguments of the training go after --')
  if not 0 <= options.grace < float('inf'):
    parser.error(f'--grace: {options.grace} is no number of seconds')
  for argument in argv[end + 1 :]:
    if argument.partition('=')[0] in _OWN_FLAGS:
      parser.error(f'{argument} is given to the processes by this launcher')
  return options, argv[end + 1 :]


def _at_least_one(text):
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text} is no number from 1')
  return int(text)


if __name__ == '__main__':
  sys.exit(main())
