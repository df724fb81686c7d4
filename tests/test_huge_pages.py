"""Huge pages: who gets them, what the user has set stays, one restart."""

import os
import subprocess
import sys

import pytest

from alexnet_jax import huge_pages
from alexnet_jax import xla_flags

NAME = 'glibc.malloc.hugetlb'


@pytest.fixture
def setting(tmp_path, monkeypatch):
  """A kernel that gives huge pages on request."""
  path = tmp_path / 'enabled'
  path.write_text('always [madvise] never\n')
  monkeypatch.setattr(huge_pages, '_SETTING', path)
  monkeypatch.setattr(os, 'confstr', lambda name: 'glibc 2.36', raising=False)
  return path


def test_they_join_what_the_user_has_set(setting):
  assert huge_pages.with_defaults({}) == {'GLIBC_TUNABLES': f'{NAME}=1'}
  (text,) = huge_pages.with_defaults(
    {'GLIBC_TUNABLES': 'glibc.malloc.check=3'}
  ).values()
  assert text == f'glibc.malloc.check=3:{NAME}=1'


def test_not_for_a_gpu(setting, monkeypatch):
  monkeypatch.setattr(xla_flags, 'wants_gpu', lambda environ: True)
  assert huge_pages.with_defaults({}) == {}


@pytest.mark.parametrize('value', ['0', '1', '2'])
def test_the_users_own_value_stays(setting, value):
  given = f'glibc.malloc.check=3:{NAME}={value}'
  assert huge_pages.with_defaults({'GLIBC_TUNABLES': given}) == {}


@pytest.mark.parametrize(
  'content', ['[always] madvise never', 'always madvise [never]', '']
)
def test_not_where_the_kernel_does_not_ask(setting, content):
  setting.write_text(content)
  assert huge_pages.with_defaults({}) == {}
  setting.unlink()
  assert huge_pages.with_defaults({}) == {}


@pytest.mark.parametrize(
  'version', ['glibc 2.34', 'musl 2.36', 'glibc', 'glibc x.y', '']
)
def test_not_without_a_c_library_that_has_it(setting, monkeypatch, version):
  monkeypatch.setattr(os, 'confstr', lambda name: version)
  assert huge_pages.with_defaults({}) == {}


PROBE = """
import os, sys
from alexnet_jax import huge_pages
huge_pages._SETTING = __import__('pathlib').Path({setting!r})
os.confstr = lambda name: 'glibc 2.36'
print('start', os.getpid())
{before}
huge_pages.restart()
tunables = os.environ.get('GLIBC_TUNABLES', '')
print(tunables, sys.argv[1:], sys.flags.utf8_mode)
"""


def run_probe(setting, command, before=''):
  """(number of the process, lines it printed)."""
  folder = setting.parent
  (folder / 'probe.py').write_text(
    PROBE.format(setting=str(setting), before=before)
  )
  environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  process = subprocess.Popen(
    [sys.executable, *command, '--a', 'b c'],
    stdout=subprocess.PIPE,
    text=True,
    env=environment,
    cwd=folder,
  )
  return process.pid, process.communicate(timeout=60)[0].splitlines()


def test_a_command_restarts_once_as_the_same_process(setting):
  command = ('-X', 'utf8', '-W', 'ignore', '-m', 'probe')
  number, lines = run_probe(setting, command)
  start = f'start {number}'
  assert lines == [start, start, f"{NAME}=1 ['--a', 'b c'] 1"]


def test_tunables_that_are_lost_are_no_reason_to_start_for_ever(setting):
  number, lines = run_probe(
    setting, ('-m', 'probe'), "os.environ.pop('GLIBC_TUNABLES', None)"
  )
  start = f'start {number}'
  assert lines == [start, start, " ['--a', 'b c'] 0"]


@pytest.mark.parametrize(
  ('command', 'before'),
  [
    (('probe.py',), ''),
    (('-c', 'import runpy; runpy.run_module("probe", {}, "__main__")'), ''),
    (('-m', 'cProfile', '-o', 'profile', '-m', 'probe'), ''),
    (('-m', 'probe'), 'sys.settrace(lambda *a: None)'),
  ],
  ids=['a file', 'another program', 'a profiler', 'a debugger'],
)
def test_other_programs_are_left_alone(setting, command, before):
  number, lines = run_probe(setting, command, before)
  assert lines == [f'start {number}', " ['--a', 'b c'] 0"]


@pytest.mark.parametrize(
  'module',
  [
    *('main', 'predict', 'evaluation.evaluate', 'evaluation.report'),
    *('evaluation.crossval', 'evaluation.sweep'),
  ],
)
def test_commands_that_compute_ask_for_them(tmp_path, module):
  """Each one is started by a Python that says when it is started again."""
  name, *arguments = module.split()
  (tmp_path / 'sitecustomize.py').write_text(
    'import os\n'
    'from alexnet_jax import huge_pages\n'
    "huge_pages.restart = lambda: (print('again', flush=True), os._exit(0))\n"
  )
  path = os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))
  done = subprocess.run(
    [sys.executable, '-m', f'alexnet_jax.{name}', *arguments, '--help'],
    env={**os.environ, 'PYTHONPATH': path},
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  assert done.stdout == 'again\n'
