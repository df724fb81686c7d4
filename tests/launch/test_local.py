"""The launcher, with a program of a few lines in place of the training."""

import contextlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / 'launch' / 'local.py'

# Ports that Linux gives to whoever asks for any.
EPHEMERAL = pathlib.Path('/proc/sys/net/ipv4/ip_local_port_range')
SIGNALS = ('SIGTERM', 'SIGKILL')  # in which order they are sent

# Started as `python -m alexnet_jax.main`: runs the program that follows --do.
STAND_IN = """\
import json, os, pathlib, signal, socket, subprocess, sys, time

def value(flag):
  return sys.argv[sys.argv.index(flag) + 1]

index, count = int(value('--process_index')), int(value('--process_count'))

def mark(name, content=''):
  part = pathlib.Path(f'{name}.part{index}')
  part.write_text(str(content))
  part.rename(name)

def wait_for(name):
  for _ in range(12000):
    if pathlib.Path(name).exists():
      return
    time.sleep(0.01)
  sys.exit(f'{name} did not come')

def wait_for_end(name):
  wait_for(name)
  try:
    while True:
      os.kill(int(pathlib.Path(name).read_text()), 0)
      time.sleep(0.01)
  except ProcessLookupError:
    time.sleep(1)  # until the launcher knows it, too

exec(value('--do'))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """The current folder, where the stand-in is found before the package."""
  (tmp_path / 'alexnet_jax').mkdir()
  (tmp_path / 'alexnet_jax' / '__init__.py').touch()
  (tmp_path / 'alexnet_jax' / 'main.py').write_text(STAND_IN)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@contextlib.contextmanager
def started(*arguments):
  """Starts the launcher in a group of its own; it ends with the test."""
  process = subprocess.Popen(
    [sys.executable, LAUNCHER, *map(str, arguments)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  try:
    yield process
  finally:
    process.kill()
    process.communicate()


def launched(*options, do):
  """Starts processes that run the program `do`."""
  return started(*options, '--', '--do', do)


def end(process):
  """Returns (exit code, standard output, messages); a byte is a character."""
  out, err = process.communicate(timeout=300)
  return process.returncode, out.decode('latin-1'), err.decode('latin-1')


def launch(*options, do):
  with launched(*options, do=do) as process:
    return end(process)


def wait_until(condition):
  latest = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < latest, 'it did not come'
    time.sleep(0.01)


def is_running(pid):
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'  # a zombie has ended


def test_standard_output_is_that_of_process_0():
  code, out, err = launch(
    *('--processes', 3),
    do='os.write(1, b"\\xff of %d\\n" % index)\n'
    'os.write(2, b"\\xfe message of %d\\n" % index)',
  )
  assert (code, out) == (0, '\xff of 0\n')
  lines = {f'\xfe message of {i}' for i in range(3)}
  assert {*err.splitlines()} == lines | {'\xff of 1', '\xff of 2'}


def test_each_process_has_its_index_and_the_arguments(folder):
  do = (
    'if index == 0: socket.create_server('
    '("127.0.0.1", int(value("--coordinator").split(":")[1])))\n'
    'assert sys.stdin.read() == ""\n'  # while the launcher's stays open
    'mark(f"{index}.json", json.dumps(sys.argv[1:]))\n'
    '[wait_for(f"{i}.json") for i in range(count)]'  # at the same time
  )
  arguments = ['--do', do, '--', '--a=b c', '*', '--json']
  with started('--processes', 3, '--', *arguments) as process:
    assert process.wait(timeout=300) == 0
  for index in range(3):
    given = json.loads((folder / f'{index}.json').read_text())
    assert given[:6] == arguments
    coordinator = given[given.index('--coordinator') + 1]
    assert coordinator.startswith('127.0.0.1:')
    if EPHEMERAL.exists():
      port = int(coordinator.partition(':')[2])
      assert port < int(EPHEMERAL.read_text().split()[0])
    assert given[6:] == (
      f'--coordinator {coordinator} --process_count 3 --process_index {index}'
    ).split(' ')


@pytest.mark.parametrize(
  ('ends', 'code'),
  [
    (['sys.exit(0)', 'sys.exit(3)', 'sys.exit(75)'], 3),
    (['sys.exit(75)', 'sys.exit(1)', 'sys.exit(75)'], 75),
    (['os.kill(os.getpid(), 9)', 'sys.exit(1)', 'sys.exit(2)'], 75),
  ],
)
def test_the_exit_code_is_that_of_the_first_that_failed(ends, code):
  # A process ends after the one before it in this order.
  do = (
    'turn = (2, 0, 1).index(index)\n'
    'if turn: wait_for_end(f"turn{turn}")\n'
    'mark(f"turn{turn + 1}", os.getpid())\n'
    f'exec({ends}[turn])'
  )
  assert launch('--processes', 3, do=do)[0] == code


def test_the_end_of_a_process_is_told():
  do = (
    'if index == 0: wait_for("told"), sys.exit(1)\n'
    'print("last words", file=sys.stderr, flush=True), os.abort()'
  )
  lines = []
  with launched('--processes', 2, do=do) as process:
    for line in process.stderr:
      lines.append(line.decode().rstrip())
      if ' ended: ' in lines[-1]:
        pathlib.Path('told').touch()
  assert lines == [
    'last words',
    'process 1 ended: Aborted',
    'process 0: 120 s left to end',
    'process 0 ended: exit code 1',
  ]


def test_the_run_goes_on_if_nobody_reads_messages():
  do = (
    'mark(f"ready{index}", os.getpid()), wait_for("closed")\n'
    'if index: sys.exit(3)\n'
    'wait_for_end("ready1"), print("result")'
  )
  with launched('--processes', 2, do=do) as process:
    wait_until(lambda: pathlib.Path('ready1').exists())
    process.stderr.close()
    process.stderr = None
    pathlib.Path('closed').touch()
    out, _ = process.communicate(timeout=300)
  assert (process.returncode, out) == (3, b'result\n')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process_once(number, folder):
  # Every delivery writes a byte, even if the handler runs once for several.
  do = (
    'reader, writer = os.pipe()\n'
    'os.set_blocking(reader, False), os.set_blocking(writer, False)\n'
    'signal.set_wakeup_fd(writer)\n'
    'signal.signal(signal.SIGTERM, lambda *_: None)\n'
    'signal.signal(signal.SIGINT, lambda *_: None)\n'
    'mark(f"ready{index}")\n'
    'got, end = b"", None\n'
    # Awake, because signals that come while it sleeps may become one.
    'while end is None or time.monotonic() < end:\n'
    '  try: got += os.read(reader, 100)\n'
    '  except BlockingIOError: continue\n'
    '  end = end or time.monotonic() + 0.5\n'
    'os.set_blocking(reader, True), mark(f"got{index}", list(got))\n'
    'os.read(reader, 1), sys.exit(75)'
  )
  with launched('--processes', 2, do=do) as process:
    for name in ('ready', 'got'):  # a second Ctrl-C is passed on as well
      paths = [folder / f'{name}{index}' for index in range(2)]
      wait_until(lambda paths=paths: all(path.exists() for path in paths))
      os.killpg(process.pid, number)  # to the group, as a terminal does
    # An orderly interruption needs no words of the launcher.
    assert end(process) == (75, '', '')
  for index in range(2):
    assert (folder / f'got{index}').read_text() == f'[{number:d}]'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_the_others_are_ended_when_the_grace_is_over(number, folder):
  handler = 'SIG_IGN' if number == signal.SIGKILL else 'SIG_DFL'
  do = (
    'if index == 0: wait_for("there"), sys.exit(3)\n'
    f'signal.signal(signal.SIGTERM, signal.{handler})\n'
    'mark("there", os.getpid()), time.sleep(60)'
  )
  code, _, err = launch('--processes', 2, '--grace', 0.2, do=do)
  assert code == 3
  assert not is_running((folder / 'there').read_text())
  still = [line for line in err.splitlines() if 'still running' in line]
  told = [f'process 1: still running, gets {name}' for name in SIGNALS]
  # A slow machine may hear of the end by SIGTERM late.
  assert still in ([told] if number == signal.SIGKILL else [told[:1], told])
  assert f'process 1 ended: {signal.strsignal(number)}' in err


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux tells children')
def test_none_is_left_if_the_launcher_is_killed(folder):
  do = 'mark(f"pid{index}", os.getpid()), time.sleep(600)'
  paths = [folder / f'pid{i}' for i in range(3)]
  with launched('--processes', 3, do=do) as process:
    wait_until(lambda: all(path.exists() for path in paths))
    pids = [path.read_text() for path in paths]
    assert all(is_running(pid) for pid in pids)
    process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_what_a_process_left_behind_ends_with_it(folder):
  do = 'mark(f"pid{index}", subprocess.Popen(["sleep", "600"]).pid), print("a")'
  assert launch('--processes', 2, do=do) == (0, 'a\n', 'a\n')
  pid = (folder / 'pid1').read_text()
  wait_until(lambda: not is_running(pid))  # init reaps it some time later


def environments(count, **options):
  """Returns the environment of each process."""
  launcher = runpy.run_path(LAUNCHER)
  return launcher['_environments'](count, **{'devices': 0, 'gpus': 0} | options)


def test_fake_devices_of_each_process(monkeypatch):
  flag = '--xla_force_host_platform_device_count'
  monkeypatch.setenv('XLA_FLAGS', f'--xla_a=1 {flag}=8 --xla_b=2')
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '5')
  for own in environments(2, devices=3):
    assert own['XLA_FLAGS'].split() == ['--xla_a=1', '--xla_b=2', f'{flag}=3']
    assert own['JAX_PLATFORMS'] == 'cpu'
    assert own['PATH'] == os.environ['PATH']
    assert 'JAX_NUM_CPU_DEVICES' not in own  # JAX would prefer it


@pytest.mark.parametrize('visible', ['', 'a, b,c,d'])
def test_gpus_of_each_process(visible, monkeypatch):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  if visible:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  expected = ['a,b', 'c,d'] if visible else ['0,1', '2,3']
  found = environments(2, gpus=2)
  assert [own['CUDA_VISIBLE_DEVICES'] for own in found] == expected
  assert {own['JAX_PLATFORMS'] for own in found} == {'cuda,cpu'}


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    ([], '--processes'),
    (['--processes', 0], '--processes: 0 is no number from 1'),
    (
      ['--processes', 2, '--gpus_per_process', 1, '--devices_per_process', 1],
      'not allowed with',
    ),
    (['--processes', 2, '--gpus_per_process', 2], '4 GPUs are needed, but'),
    (['--processes', 2, '--grace', 'nan'], '--grace: nan is no number'),
    (['--processes', 2, '--config', 'x'], '--config x: arguments of the train'),
    (['--processes', 2, '--', '--process_index=1'], '--process_index=1 is'),
  ],
)
def test_wrong_arguments_are_refused(arguments, named, monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1,2')
  with started(*arguments) as process:
    code, out, err = end(process)
  assert (code, out) == (2, '')
  assert 'error: ' in err
  assert named in err
  assert 'Traceback' not in err
