"""The package as a wheel, without the checkout that it was built from."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from setuptools import build_meta

from tests.system import commands

ROOT = pathlib.Path(__file__).parents[2]
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
  return subprocess.run(
    [sys.executable, '-m', 'alexnet_jax', *arguments],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': str(site)},
    capture_output=True,
    text=True,
  )


def test_a_wheel_trains_with_the_recipes_that_it_has(site, tmp_path):
  command = ('train', '--config', 'quickstart', '--dry_run')
  process = run(site, tmp_path, *command, *commands.OVERRIDES)
  assert process.returncode == 0, process.stderr
  launcher = [sys.executable, '-m', 'alexnet_jax.launch.local', '--help']
  folder = {'cwd': tmp_path, 'env': os.environ | {'PYTHONPATH': str(site)}}
  told = subprocess.run(launcher, **folder, check=True, capture_output=True)
  assert f'{site}/alexnet_jax/launch/local.py'.encode() in told.stdout
  process = run(site, tmp_path, 'train', '--config', 'imagnet')
  assert process.returncode == 2
  assert "no recipe at 'imagnet'" in process.stderr


def test_a_wheel_has_every_file_that_the_code_reads(site):
  kinds = {'.py', '.toml', '.jinja', '.sh', '.yaml'}
  for name in ROOMS:
    here = site / ('alexnet_jax' if name != 'alexnet_jax' else '') / name
    paths = {p.relative_to(ROOT / name) for p in (ROOT / name).rglob('*.*')}
    wanted = {p for p in paths if p.suffix in kinds}
    assert wanted
    assert not {p for p in wanted if not (here / p).is_file()}


def test_one_command_has_all_others(site, tmp_path):
  assert ' export ' in run(site, tmp_path, '--help').stdout
  process = run(site, tmp_path, 'prepare', 'check', 'nowhere')
  assert process.returncode == 2
  assert "no folder at 'nowhere'" in process.stderr
  assert run(site, tmp_path, 'trian').returncode == 2
  process = run(site, tmp_path, 'sweep', '--help')
  assert process.stdout.startswith('usage: python -m alexnet_jax.evaluation.')
