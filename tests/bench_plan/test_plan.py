"""The command, as far as it goes without XLA's compiler for CUDA."""

import numpy as np
import pytest

from alexnet_jax import runtime
from alexnet_jax import validation
from alexnet_jax.bench import plan_step
from alexnet_jax.bench import plan_targets
from alexnet_jax.bench.__main__ import main
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from tests.system import commands


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
  monkeypatch.chdir(commands.ROOT)


@pytest.mark.parametrize('name', ['a100', 'h100'])
def test_descriptions_come_with_the_package(name):
  target = plan_targets.load(name)
  assert name.upper() in target.name
  assert set(target.figures) == set(plan_targets.FIGURES)
  assert all(figure.source for figure in target.figures.values())
  # XLA's description says the same of memory and bandwidth.
  for key, figure in (
    ('device_memory_size', 'memory'),
    ('memory_bandwidth', 'memory_bandwidth'),
  ):
    assert f'{key}: {target.value(figure):.0f}\n' in target.xla


def test_all_known_targets_are_named():
  assert plan_targets.NAMES == ('a100', 'h100')


def own_description(tmp_path, old='', new=''):
  source = commands.ROOT / 'alexnet_jax/bench/targets/h100.toml'
  path = tmp_path / 'mine.toml'
  path.write_text(source.read_text().replace(old, new) if old else old)
  return str(path)


def test_an_own_description(tmp_path):
  path = own_description(tmp_path, 'value = 450e9', 'value = 32e9')
  assert plan_targets.load(path).value('link_bandwidth') == 32e9


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('[link_bandwidth]', '[links]', "lacks 'link_bandwidth'"),
    ('target = ', 'targets = ', "lacks 'target'"),
    ('name = ', 'names = ', "lacks 'name'"),
    ('value = 450e9', 'value = -450e9', 'of link_bandwidth is -450000000000.0'),
    ('value = 450e9', 'value = "450"', "of link_bandwidth is '450'"),
    ('value = 450e9', 'value = nan', 'of link_bandwidth is nan'),
    ('value = 450e9', 'value = true', 'of link_bandwidth is True'),
    ('value = 450e9', 'values = 450e9', 'a table of value, unit, source'),
    ('[memory]', 'memory = 3\n[other]', 'memory is 3; it must be a table'),
    (
      'unit = "bytes"',
      'unit = "GB"',
      "memory is 'GB'; give its value in bytes",
    ),
    ('value = 450e9', 'value is 450e9', 'is no TOML file'),
  ],
)
def test_bad_descriptions(tmp_path, old, new, message):
  with pytest.raises(UserError, match=message):
    plan_targets.load(own_description(tmp_path, old, new))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--target', 'h1000'], "--target is 'h1000': neither a100 nor h100"),
    (['--memory_fraction', '1.5'], '--memory_fraction is 1.5'),
    (['--memory_fraction', '0'], '--memory_fraction is 0'),
    (['--config', 'x.py'], "no recipe at 'x.py'"),
    (['--config.sed=3'], 'did you mean config.seed'),
    (['--devices', '3'], '3 devices do not divide'),
  ],
)
def test_wrong_arguments_are_refused(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr(runtime, 'plugin_libraries', list)
  assert main(['plan', *arguments]) == 2
  assert message in capsys.readouterr().err


def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setattr(runtime, 'plugin_libraries', list)
  assert main(['plan']) == 2
  assert "pip install -e '.[cuda12]'" in capsys.readouterr().err


@pytest.mark.parametrize(
  'changes',
  [
    [],
    ['--config.data.random_flip=False', '--config.data.unreadable=skip'],
    ['--config.data.brightness=0.1'],
  ],
)
def test_batches_are_those_of_training(changes):
  """Names, shapes and dtypes, as the loader makes them."""
  config = validation.load_config(
    [
      *('--config=configs/quickstart.py', '--config.data.source=synthetic'),
      *('--config.global_batch_size=4', '--config.data.resize_size=28'),
      *('--config.data.crop_size=24', '--config.data.synthetic_examples=8'),
      *('--config.data.val_fraction=0.5', *changes),
    ]
  )
  loader = build.make_loader(config, 'train')
  mesh = parallel.make_mesh()
  batch = next(build.make_train_iter(config, loader, 1, mesh))
  expected = plan_step.batch_shapes(config)
  assert {n: (np.shape(a), a.dtype) for n, a in batch.items()} == {
    n: (a.shape, a.dtype) for n, a in expected.items()
  }
