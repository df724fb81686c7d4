"""The launcher, with a program of a few lines in the place of the training."""

from collections.abc import Iterator
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / 'launch' / 'local.py'

# Started as `python -m alexnet_jax.main`: does what stands behind --do.
STAND_IN = """\
import json, os, pathlib, signal, socket, sys, time

def value(flag):
  return sys.argv[sys.argv.index(flag) + 1]

index, count = int(value('--process_index')), int(value('--process_count'))

def mark(name, content=''):
  part = pathlib.Path(f'{name}.part{index}')
  part.write_text(str(content))
  part.rename(name)

def wait_for(name):
  for _ in range(3000):
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
    time.sleep(0.1)

exec(value('--do'))
"""
# Runs any commands, as the launcher does those of the training.
RUN = """\
import json, os, pathlib, signal, sys
import children

commands, kill_after = json.loads(sys.argv[1])
try:
  code = children.run(
    commands,
    [dict(os.environ)] * len(commands),
    pathlib.Path.cwd(),
    grace=0.2,
    kill_after=kill_after,
  )
except OSError as error:
  code = str(error)
if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
  sys.exit('the handlers of signals are left')
try:
  os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
  sys.exit(code)
sys.exit('some processes are left')
"""
# Process 0 fails when the other is there, which would go on for ever.
FAIL_BESIDE = 'wait_for("there"), sys.exit(3)'
STAY = 'mark("there", os.getpid())\nwhile True: time.sleep(1)'


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
  """Where the stand-in is found before the real package."""
  (tmp_path / 'alexnet_jax').mkdir()
  (tmp_path / 'alexnet_jax' / 'main.py').write_text(STAND_IN)
  (tmp_path / 'temporary').mkdir()
  monkeypatch.setenv('TMPDIR', str(tmp_path / 'temporary'))
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def local(monkeypatch):
  """The launcher as a module."""
  monkeypatch.syspath_prepend(LAUNCHER.parent)
  spec = importlib.util.spec_from_file_location('launch_local', LAUNCHER)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def started(*command) -> Iterator[subprocess.Popen]:
  """A process that does not outlive the test, in a group of its own."""
  process = subprocess.Popen(
    [sys.executable, *map(str, command)],
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
  """A launcher under way."""
  return started(LAUNCHER, *options, '--', '--do', do)


def end(process):
  """(exit code, standard output, messages); every byte is a character."""
  out, err = process.communicate(timeout=60)
  return process.returncode, out.decode('latin-1'), err.decode('latin-1')


def launch(*options, do):
  with launched(*options, do=do) as process:
    return end(process)


def refused(*arguments):
  with started(LAUNCHER, *arguments) as process:
    code, out, err = end(process)
  assert (code, out) == (2, '')
  assert 'error: ' in err
  assert 'Traceback' not in err
  return err


def wait_until(condition):
  latest = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < latest, 'it did not come'
    time.sleep(0.01)


def is_running(pid):
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  # One that only waits to be buried has ended.
  return status.rpartition(')')[2].split()[0] != 'Z'


def test_output_of_process_0_is_that_of_the_launcher():
  code, out, err = launch(
    *('--processes', 3),
    do='if index: wait_for("written")\n'
    'os.write(1, b"\\xff\\x00 of %d\\n{}" % index)\n'
    'os.write(2, b"\\xfe message of %d" % index)\n'
    'mark("written")',
  )
  assert code == 0
  assert out == '\xff\x00 of 0\n{}'
  assert err == '\xfe message of 0'


def test_each_process_has_its_place_and_the_arguments(place):
  do = (
    'if index == 0: socket.create_server('
    '("127.0.0.1", int(value("--coordinator").split(":")[1])))\n'
    'mark(f"{index}.json", json.dumps(sys.argv[1:]))'
  )
  with started(
    LAUNCHER, '--processes', 3, '--', '--do', do, '--', '--a=b c', '*', '--json'
  ) as process:
    code, _, err = end(process)
  assert code == 0, err
  for index in range(3):
    given = json.loads((place / f'{index}.json').read_text())
    coordinator = given[given.index('--coordinator') + 1]
    assert given[:6] == ['--do', do, '--', '--a=b c', '*', '--json']
    assert sorted(given[6:]) == sorted(
      f'--coordinator {coordinator} --process_count 3'
      f' --process_index {index}'.split()
    )
    assert coordinator.startswith('127.0.0.1:')


def test_they_run_at_the_same_time_and_read_nothing():
  do = (
    'assert sys.stdin.read() == ""\n'
    'mark(f"here{index}")\n'
    '[wait_for(f"here{i}") for i in range(count)]'
  )
  with launched('--processes', 3, do=do) as process:
    # While the launcher's standard input stays open.
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
  ('ends', 'code'),
  [
    (['sys.exit(3)', 'sys.exit(75)', 'sys.exit(75)'], 3),
    (['sys.exit(75)', 'sys.exit(1)', 'sys.exit(75)'], 75),
    (['sys.exit(0)', 'sys.exit(2)', 'sys.exit(1)'], 2),
    (['os.kill(os.getpid(), 9)', 'sys.exit(1)', 'sys.exit(2)'], 75),
    (['os.abort()', 'sys.exit(75)', 'sys.exit(75)'], 75),
  ],
)
@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
def test_the_exit_code_is_that_of_the_first_that_failed(ends, code, order):
  # A process ends after the one before it in that order.
  do = (
    f'turn = {order}.index(index)\n'
    'if turn: wait_for_end(f"turn{turn}")\n'
    'mark(f"turn{turn + 1}", os.getpid())\n'
    f'exec({ends}[turn])'
  )
  assert launch('--processes', 3, do=do)[0] == code


def test_an_orderly_interruption_needs_no_words(place):
  do = 'print("saved" * (index == 0), file=sys.stderr, end=""), sys.exit(75)'
  code, _, err = launch('--processes', 2, '--log_dir', place / 'x', do=do)
  assert code == 75
  assert err == f'saved\nlogs: {place / "x"}\n'


@pytest.mark.parametrize('index', [0, 1])
@pytest.mark.parametrize(
  ('how', 'named'),
  [
    ('sys.exit(3)', 'ended with exit code 3'),
    ('sys.stderr.flush(), os.kill(os.getpid(), 9)', 'was killed by SIGKILL'),
  ],
)
def test_the_one_that_fails_is_named_with_the_end_of_its_log(
  index, how, named, place
):
  do = (
    f'if index != {index}:\n'
    '  print("line of another", file=sys.stderr)\n'
    '  wait_for_end("dead"), sys.exit(1)\n'
    'for i in range(40): print(f"line {i}", file=sys.stderr)\n'
    f'mark("dead", os.getpid())\n{how}'
  )
  folder = place / 'logs'
  _, _, err = launch('--processes', 2, '--log_dir', folder, do=do)
  log = (folder / f'process_{index}.log').read_text().splitlines()
  assert log == [f'line {i}' for i in range(40)]
  said = [line for line in err.splitlines() if not line.startswith('line ')]
  assert said[:2] == [
    f'process {index} {named}',
    f'the end of {folder}/process_{index}.log:',
  ]
  assert said[2:32] == [f'  line {i}' for i in range(10, 40)]
  # The other is named only.
  assert said[32:] == [
    f'process {1 - index} may take 120 s to end, too',
    f'process {1 - index} ended with exit code 1',
    f'logs: {folder}',
  ]
  # What process 0 says is seen at once, too; what others say is not.
  assert ('line 0' in err.splitlines()) == (index == 0)


def test_messages_stand_on_lines_of_their_own():
  do = (
    'if index == 0: print("step 1", end="", file=sys.stderr, flush=True)\n'
    'wait_for("seen"), sys.exit(0 if index == 0 else 3)'
  )
  with launched('--processes', 2, do=do) as process:
    assert os.read(process.stderr.fileno(), 6) == b'step 1'
    pathlib.Path('seen').touch()
    _, _, err = end(process)
  assert err.startswith('\nprocess 1 ended with exit code 3\n')


def test_last_words_of_process_0_come_before_its_end_is_told():
  # As much as the launcher takes while nobody reads what it passes on.
  do = (
    'if index:\n'
    '  wait_for_end("full"), mark("over"), sys.exit(75)\n'
    'os.set_blocking(2, False)\n'
    'lines, end = 0, time.monotonic() + 0.5\n'
    'while time.monotonic() < end:\n'
    '  try: os.write(2, b"line\\n")\n'
    '  except BlockingIOError: continue\n'
    '  lines, end = lines + 1, time.monotonic() + 0.5\n'
    'mark("lines", lines), mark("full", os.getpid()), sys.exit(3)'
  )
  with launched('--processes', 2, do=do) as process:
    wait_until(pathlib.Path('over').exists)
    _, _, err = end(process)
  lines = int(pathlib.Path('lines').read_text())
  said = 'process 0 ended with exit code 3\n'
  assert err.startswith('line\n' * lines + said)


def test_temporary_logs_stay_if_something_went_wrong(place):
  do = 'print("words of", index)'
  assert launch('--processes', 2, do=do)[0] == 0
  assert os.listdir(place / 'temporary') == []
  code, _, err = launch('--processes', 2, do=f'{do}, sys.exit(index)')
  assert code == 1
  (folder,) = (place / 'temporary').iterdir()
  assert err.endswith(f'logs: {folder}\n')
  assert (folder / 'process_1.log').read_text() == 'words of 1\n'


def test_given_logs_stay_and_are_written_anew(place):
  for word in ('first', 'second'):
    do = f'print("{word}", index)'
    code, out, err = launch('--processes', 2, '--log_dir', 'a/b', do=do)
    assert (code, out, err) == (0, f'{word} 0\n', '')
    log = place / 'a' / 'b' / 'process_1.log'
    assert log.read_text() == f'{word} 1\n'
  assert os.listdir(place / 'temporary') == []


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process_once(number, place):
  # Every delivery writes a byte, even if the handler runs once for several.
  do = (
    'reader, writer = os.pipe()\n'
    'os.set_blocking(reader, False), os.set_blocking(writer, False)\n'
    'signal.set_wakeup_fd(writer)\n'
    'signal.signal(signal.SIGTERM, lambda *_: None)\n'
    'signal.signal(signal.SIGINT, lambda *_: None)\n'
    'mark(f"ready{index}", os.getsid(0) == os.getpid())\n'
    'got, end = b"", None\n'
    # Awake, because signals that come while it sleeps may become one.
    'while end is None or time.monotonic() < end:\n'
    '  try: got += os.read(reader, 100)\n'
    '  except BlockingIOError: continue\n'
    '  end = end or time.monotonic() + 0.5\n'
    'mark(f"got{index}", list(got)), sys.exit(75)'
  )
  with launched('--processes', 3, do=do) as process:
    wait_until(lambda: all((place / f'ready{i}').exists() for i in range(3)))
    # To the group, as a terminal does.
    os.killpg(process.pid, number)
    code, _, err = end(process)
  assert code == 75, err
  for index in range(3):
    assert (place / f'got{index}').read_text() == f'[{number:d}]'
    # Else a terminal's Ctrl-C would come twice.
    assert (place / f'ready{index}').read_text() == 'True'


def test_a_second_ctrl_c_is_passed_on_as_well(place):
  do = (
    'got = []\n'
    'signal.signal(signal.SIGINT, lambda *_: got.append(0))\n'
    'mark(f"ready{index}")\n'
    'while not got: time.sleep(0.01)\n'
    'mark(f"got{index}")\n'
    'while len(got) < 2: time.sleep(0.01)\n'
    'sys.exit(1)'
  )
  with launched('--processes', 2, do=do) as process:
    for name in ('ready', 'got'):
      paths = [place / f'{name}{i}' for i in range(2)]
      wait_until(lambda paths=paths: all(path.exists() for path in paths))
      process.send_signal(signal.SIGINT)
    assert end(process)[0] == 1


def test_the_others_are_ended_when_the_grace_is_over(place):
  code, _, err = launch(
    *('--processes', 2, '--grace', 0.2),
    do=f'exec([{FAIL_BESIDE!r}, {STAY!r}][index])',
  )
  assert code == 3
  assert not is_running((place / 'there').read_text())
  assert 'process 1: still running, gets SIGTERM\n' in err
  assert 'process 1 was killed by SIGTERM\n' in err


def test_within_the_grace_the_others_are_left_alone():
  do = (
    'if index == 0: wait_for("ready"), sys.exit(3)\n'
    'signal.signal(signal.SIGTERM, lambda *_: print("no"))\n'
    'mark("ready"), time.sleep(0.5), sys.exit(75)'
  )
  code, _, err = launch('--processes', 2, '--grace', 20, do=do)
  assert code == 3
  assert 'process 1 may take 20 s to end, too\n' in err
  assert 'SIGTERM' not in err


def run(commands, kill_after=30.0):
  """As `launch`, of any commands."""
  with started('-c', RUN, json.dumps([commands, kill_after])) as process:
    return end(process)


def test_who_does_not_mind_sigterm_is_killed(place, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(LAUNCHER.parent))
  stubborn = (
    'import os, pathlib, signal, time\n'
    'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
    'pathlib.Path("pid").write_text(str(os.getpid()))\n'
    'time.sleep(60)'
  )
  failing = (
    'import pathlib, sys, time\n'
    'while not pathlib.Path("pid").exists(): time.sleep(0.01)\n'
    'sys.exit(4)'
  )
  commands = [[sys.executable, '-c', code] for code in (stubborn, failing)]
  code, _, err = run(commands, kill_after=0.2)
  assert code == 4
  assert err.splitlines()[-3:] == [
    'process 0: still running, gets SIGTERM',
    'process 0: still running, gets SIGKILL',
    'process 0 was killed by SIGKILL',
  ]
  assert not is_running((place / 'pid').read_text())


def test_none_is_left_if_one_cannot_be_started(monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(LAUNCHER.parent))
  code, _, err = run([['sleep', '60'], ['/no/such/program']])
  assert code == 1
  assert err == "[Errno 2] No such file or directory: '/no/such/program'\n"


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux tells children')
def test_none_is_left_if_the_launcher_is_killed(place):
  do = 'mark(f"pid{index}", os.getpid()), time.sleep(60)'
  paths = [place / f'pid{i}' for i in range(3)]
  with launched('--processes', 3, do=do) as process:
    wait_until(lambda: all(path.exists() for path in paths))
    pids = [path.read_text() for path in paths]
    assert all(is_running(pid) for pid in pids)
    process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_it_goes_on_if_nobody_reads_its_messages(place):
  do = (
    'mark("ready")\n'
    'wait_for("closed")\n'
    'print("x" * 200_000, file=sys.stderr), print("result"), sys.exit(75)'
  )
  with launched('--processes', 2, '--log_dir', 'logs', do=do) as process:
    wait_until((place / 'ready').exists)
    process.stderr.close()
    process.stderr = None
    (place / 'closed').touch()
    out, _ = process.communicate(timeout=60)
  assert (process.returncode, out) == (75, b'result\n')
  assert (place / 'logs' / 'process_0.log').stat().st_size == 200_001


@pytest.mark.parametrize('code', [0, 4])
def test_nothing_is_lost_if_its_messages_are_read_late(code, place):
  # More than one pipe takes, and less than two.
  lines = [f'{i:03d}' + 'x' * 1000 for i in range(84)]
  do = (
    'mark(f"pid{index}", os.getpid())\n'
    'if index: sys.exit()\n'
    'for i in range(84): print(f"{i:03d}" + "x" * 1000, file=sys.stderr)\n'
    f'sys.exit({code})'
  )
  with launched('--processes', 2, do=do) as process:
    wait_until((place / 'pid0').exists)
    pid = (place / 'pid0').read_text()
    wait_until(lambda: not is_running(pid))
    time.sleep(0.3)
    seen, _, err = end(process)
  assert seen == code
  said = [line for line in err.splitlines() if line[:1].isdigit()]
  assert said == lines
  tail = [line for line in err.splitlines() if line.startswith('  ')]
  assert tail == ([f'  {line}' for line in lines[-30:]] if code else [])


def test_it_ends_though_process_0_left_one_behind(place):
  do = (
    'import subprocess\n'
    'if index == 0: mark("pid", subprocess.Popen(["sleep", "60"]).pid)\n'
    'print("message", file=sys.stderr)'
  )
  begun = time.monotonic()
  with launched('--processes', 2, do=do) as process:
    code = process.wait(timeout=60)
    # `sleep` has the test's pipes, too.
    os.kill(int((place / 'pid').read_text()), signal.SIGKILL)
    _, _, err = end(process)
  assert (code, err) == (0, 'message\n')
  assert time.monotonic() - begun < 30


@pytest.mark.parametrize('code', [0, 4])
def test_it_ends_though_what_process_0_started_goes_on_writing(code):
  do = (
    'import subprocess\n'
    'if index: sys.exit()\n'
    'print("message", file=sys.stderr, flush=True)\n'
    'chatter = "while :; do echo y; sleep 0.01; done"\n'
    'subprocess.Popen(["sh", "-c", chatter], stdout=sys.stderr)\n'
    f'sys.exit({code})'
  )
  with launched('--processes', 2, do=do) as process:
    # By itself: the chatter ends when nobody reads it any more.
    seen, _, err = end(process)
  assert seen == code
  assert err.startswith('message\n')
  assert ('process 0 ended with exit code 4' in err) == bool(code)


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (None, ['D=2']),
    ('', ['D=2']),
    ('--xla_a=1 --xla_b=2', ['--xla_a=1', '--xla_b=2', 'D=2']),
    ('--xla_a=1 D=8 --xla_b=2', ['--xla_a=1', '--xla_b=2', 'D=2']),
    ('D=8', ['D=2']),
  ],
)
def test_fake_devices_of_each_process(flags, expected, local):
  name = '--xla_force_host_platform_device_count'
  environ = {'A': 'b', 'JAX_PLATFORMS': 'cuda', 'JAX_NUM_CPU_DEVICES': '5'}
  if flags is not None:
    environ['XLA_FLAGS'] = flags.replace('D', name)
  before = dict(environ)
  for own in local.make_environments(environ, 3, devices=2):
    assert own['XLA_FLAGS'].split() == [e.replace('D', name) for e in expected]
    assert own['JAX_PLATFORMS'] == 'cpu'
    assert own['A'] == 'b'
    assert 'JAX_NUM_CPU_DEVICES' not in own  # JAX would prefer it
  assert environ == before


@pytest.mark.parametrize(
  ('visible', 'expected'),
  [
    (None, ['0,1', '2,3']),
    ('7,6,5,4,3', ['7,6', '5,4']),
    ('GPU-a, GPU-b,GPU-c,GPU-d', ['GPU-a,GPU-b', 'GPU-c,GPU-d']),
  ],
)
def test_gpus_of_each_process(visible, expected, local):
  environ = {} if visible is None else {'CUDA_VISIBLE_DEVICES': visible}
  own = local.make_environments(environ, 2, gpus=2)
  assert [e['CUDA_VISIBLE_DEVICES'] for e in own] == expected


def test_without_such_options_the_environment_stays(local):
  environ = {'XLA_FLAGS': 'x', 'CUDA_VISIBLE_DEVICES': '1'}
  assert local.make_environments(environ, 2) == [environ, environ]


@pytest.mark.parametrize(
  ('option', 'names', 'expected'),
  [
    (
      '--devices_per_process',
      ['JAX_PLATFORMS', 'XLA_FLAGS'],
      ['cpu', '--xla_a=1 --xla_force_host_platform_device_count=3'],
    ),
    ('--gpus_per_process', ['CUDA_VISIBLE_DEVICES'], ['3,4,5']),
  ],
)
def test_the_processes_get_their_environments(option, names, expected):
  do = f'if index == 1: mark("of1", [os.environ[n] for n in {names}])'
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    patch.setenv(
      'XLA_FLAGS', '--xla_a=1 --xla_force_host_platform_device_count=4'
    )
    code, _, err = launch('--processes', 2, option, 3, do=do)
  assert code == 0, err
  assert pathlib.Path('of1').read_text() == str(expected)


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    ([], '--processes'),
    (['--processes', 0], '--processes: 0 is no number from 1'),
    (['--processes', 'two'], '--processes: two is no number'),
    (['--processes', 2, '--devices_per_process', 0], '--devices_per_process'),
    (['--processes', 2, '--gpus_per_process', -1], '--gpus_per_process'),
    (
      ['--processes', 2, '--gpus_per_process', 1, '--devices_per_process', 1],
      'not allowed with',
    ),
    (['--processes', 2, '--grace', -1], '--grace: -1 is no number of seconds'),
    (['--processes', 2, '--grace', 'nan'], '--grace: nan is no number'),
    (['--processes', 2, '--config', 'x'], '--config x: arguments of the train'),
    (['--processes', 2, '--', '--coordinator', 'a:1'], '--coordinator is'),
    (['--processes', 2, '--', '--process_index=1'], '--process_index=1 is'),
    (['--processes', 2, '--', '--process_count', 3], '--process_count is'),
    (['--processes', 2, '--log_dir', '/dev/null/logs'], '/dev/null/logs'),
  ],
)
def test_wrong_arguments_are_refused(arguments, named):
  assert named in refused(*arguments)


def test_too_few_gpus_are_refused(monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1,2')
  err = refused('--processes', 2, '--gpus_per_process', 2)
  assert '4 GPUs are needed, but CUDA_VISIBLE_DEVICES=0,1,2 names 3' in err


def test_a_free_port_can_be_had_by_all(local):
  port = local.free_port()
  assert port >= 1024
  with socket.create_server(('127.0.0.1', port)):
    assert local.free_port() != port
