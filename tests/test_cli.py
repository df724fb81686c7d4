"""The console of all commands: tables, lines and one progress bar."""

import errno
import importlib
import io
import os
import sys

import pytest

from alexnet_jax import cli
from tests.system import commands


class Terminal(io.StringIO):
  def isatty(self):
    return True


def show(stream):
  console = cli.Console(stream)
  console.table('a run', [('devices', '4 x cpu [red]')])
  console.start(10, 4, 'step', 'training')
  for done in range(5, 9):
    console.advance(done)
    console.values('loss 0.5000', f'step {done}/10', ', 3 s left')
  console.line('an evaluation [/red] ' + 'of many words ' * 20)
  console.stop()


def test_a_terminal_gets_a_bar(monkeypatch):
  monkeypatch.setenv('COLUMNS', '120')
  monkeypatch.setenv('TERM', 'xterm')
  show(stream := Terminal())
  text = stream.getvalue()
  assert '8/10' in text
  assert 'loss 0.5000' in text
  assert 'an evaluation [/red]' in text


def test_anything_else_gets_lines():
  show(stream := io.StringIO())
  text = stream.getvalue()
  assert '\r' not in text
  assert '\x1b' not in text
  lines = [line for line in text.splitlines() if 'loss' in line]
  assert lines == [
    f'step {done}/10: loss 0.5000, 3 s left' for done in range(5, 9)
  ]
  assert '4 x cpu [red]' in text
  assert text.splitlines()[-1].startswith('an evaluation [/red] of many')


def test_lines_now_and_then_without_a_terminal(monkeypatch):
  now = 100.0
  monkeypatch.setattr(cli.time, 'monotonic', lambda: now)
  stream = io.StringIO()
  console = cli.Console(stream)
  console.start(4000, 0, 'image', 'resizing', line_seconds=10)
  for done in (500, 1000, 1100):
    now += 6
    console.advance(done)
  console.stop()
  assert stream.getvalue() == (
    'resizing: 1,000 of 4,000 images, 83 images/s, 36 s left\n'
  )


def test_the_others_of_several_processes_are_silent(capsys):
  cli.Console(cli.NullStream()).line('text')
  assert capsys.readouterr() == ('', '')


def test_a_device_that_is_not_there():
  """Of a process of its own: JAX chooses its devices once."""
  code = (
    'import sys; from alexnet_jax import cli; import jax;'
    ' sys.exit(cli.run(lambda: {"n": jax.device_count()}, json_output=True))'
  )
  cuda = {'JAX_PLATFORMS': 'cuda'}
  code, _, err = commands.run(sys.executable, '-c', code, env=cuda)
  assert code == 2, err
  assert 'Traceback' not in err
  assert "error: JAX_PLATFORMS is 'cuda', and" in err


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    RuntimeError('I/O error: No space left on device (os error 28)'),
  ],
)
def test_writes_that_find_no_room_are_no_bugs(error):
  code, message = cli.exit_code_and_message(error)
  assert code == 2
  assert 'make room and start the same command again' in message


def test_names_of_strangers_get_nothing_of_the_terminal(capsys):
  def work():
    print('\x1b]0;owned\x07 \x1b[31mred\tcat\x9b2J', file=sys.stderr)

  assert cli.run(work, json_output=False, uses_jax=False) == 0
  assert (
    capsys.readouterr().err == '\ufffd]0;owned\ufffd \x1b[31mred\tcat\ufffd2J\n'
  )


def test_folders_of_arguments(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert cli.path('~/runs/a') == '/home/me/runs/a'
  assert cli.path('runs/~a') == 'runs/~a'


@pytest.mark.parametrize(
  'command',
  [
    'main --workdir',
    'evaluation.evaluate --workdir',
    'evaluation.evaluate --workdir x --per_example',
    'evaluation.features --workdir x --layers y --out',
    'evaluation.crossval --workdir',
    'evaluation.seeds --workdir',
    'evaluation.sweep --workdir',
    'evaluation.compare x --out',
    'predict --workdir x y.jpg --csv',
    'interop.load --from torch x --workdir',
    'interop.load --from torch --workdir x y --mean',
    'bench.__main__ data --path',
    'interop.export --workdir x',
    'interop.save --workdir x',
    'data.prepare.__main__ raw --source folder --path x --out',
  ],
)
def test_no_command_takes_an_address_for_a_folder(command, capsys):
  name, *arguments = command.split()
  module = importlib.import_module(f'alexnet_jax.{name}')
  with pytest.raises(SystemExit) as caught:
    module.main([*arguments, 'gs://bucket/run'])
  assert caught.value.code == 2
  assert 'gs://bucket/run is no path of this machine' in capsys.readouterr().err
