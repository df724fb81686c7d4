"""The package as a wheel, without the checkout that it was built from."""

import shutil
import sys
import zipfile

import pytest
from setuptools import build_meta

from tests.system import commands
from tests.system.commands import ROOT

ROOMS = ('alexnet_jax', 'configs', 'launch')
PARTS = (*ROOMS, 'pyproject.toml', 'README.md', 'LICENSE')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The folder of an installed wheel."""
  source = tmp_path_factory.mktemp('source')
  for name in PARTS:
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, source / name)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(source)
    name = build_meta.build_wheel(str(source))
  folder = tmp_path_factory.mktemp('site')
  with zipfile.ZipFile(source / name) as wheel:
    wheel.extractall(folder)
  return folder


def run(site, folder, *arguments):
  options = {'cwd': folder, 'env': {'PYTHONPATH': str(site)}}
  return commands.run(sys.executable, '-m', *arguments, **options)


def test_a_wheel_trains_with_the_recipes_that_it_has(site, tmp_path):
  command = ('alexnet_jax', 'train', '--config')
  dry_run = ('quickstart', '--dry_run', *commands.OVERRIDES)
  _, err = commands.done(run(site, tmp_path, *command, *dry_run))
  code, out, _ = run(site, tmp_path, 'alexnet_jax.launch.local', '--help')
  assert (code, f'{site}/alexnet_jax/launch/local.py' in out) == (0, True)
  code, _, err = run(site, tmp_path, *command, 'imagnet')
  assert code == 2
  assert "no recipe at 'imagnet'" in err


def test_a_wheel_has_every_file_that_the_code_reads(site):
  kinds = {'.py', '.toml', '.jinja', '.sh', '.yaml'}
  for name in ROOMS:
    here = site / ('alexnet_jax' if name != 'alexnet_jax' else '') / name
    paths = {p.relative_to(ROOT / name) for p in (ROOT / name).rglob('*.*')}
    wanted = {p for p in paths if p.suffix in kinds}
    assert wanted
    assert not {p for p in wanted if not (here / p).is_file()}


def test_one_command_has_all_others(site, tmp_path):
  def call(*arguments):
    return run(site, tmp_path, 'alexnet_jax', *arguments)

  assert ' export ' in call('--help')[1]
  code, _, err = call('prepare', 'check', 'nowhere')
  assert code == 2
  assert "no folder at 'nowhere'" in err
  assert call('trian')[0] == 2
  usage = 'usage: python -m alexnet_jax.evaluation.'
  assert call('sweep', '--help')[1].startswith(usage)
