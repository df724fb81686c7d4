"""Huge pages: who gets them, what the user has set stays, one restart."""

import os
import subprocess
import sys

import pytest

from alexnet_jax import huge_pages

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


def test_a_command_restarts_once_as_the_same_process(setting):
  program = (
    'import os, pathlib, sys; from alexnet_jax import huge_pages as h;'
    f' h._SETTING = pathlib.Path({str(setting)!r});'
    " h.os.confstr = lambda name: 'glibc 2.36';"
    " print('start', os.getpid(), flush=True); h.restart();"
    " print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.flags.utf8_mode)"
  )
  environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  command = [sys.executable, '-X', 'utf8', '-c', program, '--a', 'b c']
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=environment
  )
  lines = process.communicate(timeout=60)[0].splitlines()
  start = f'start {process.pid}'
  assert lines == [start, start, f"{NAME}=1 ['--a', 'b c'] 1"]
