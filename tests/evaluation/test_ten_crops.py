"""Ten crops of photographs, whose number no batch divides."""

import json

import numpy as np
import PIL.Image
import pytest

from alexnet_jax import validation
from alexnet_jax.cli import Console
from alexnet_jax.data.prepare import __main__ as prepare
from alexnet_jax.evaluation import ensemble
from alexnet_jax.evaluation import evaluate
from alexnet_jax.training import guards
from alexnet_jax.training import loop
from tests.evaluation import loops
from tests.system import commands

BATCH = 12
BATCH_NORM = {'model__norm': 'batch', 'model__norm_layers': (1,)}
LRN = {'model__norm': 'lrn', 'model__norm_layers': (1,)}


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  """Of many sizes, 13 of 3 classes for validation; also as a raw set."""
  folder = tmp_path_factory.mktemp('photographs')
  rng = np.random.default_rng(0)
  for number in range(37):
    split = 'val' if number < 13 else 'train'
    path = folder / 'jpeg' / split / f'class_{number % 3}' / f'{number}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = rng.integers(0, 256, (5, 6, 3), np.uint8)
    size = tuple(int(side) for side in rng.integers(30, 90, 2))
    smooth = PIL.Image.fromarray(patches).resize(size, PIL.Image.BICUBIC)
    smooth.save(path, quality=95)
  raw = ['raw', '--source', 'folder', '--path', str(folder / 'jpeg')]
  assert prepare.main([*raw, '--out', str(folder / 'raw'), '--size', '28']) == 0
  return folder


def train(folder, small, **changes):
  """A few steps of a small network; the run's folder."""
  recipe = commands.write_recipe(
    folder, **{**small, 'num_steps': 10, 'global_batch_size': BATCH, **changes}
  )
  config = validation.load_config([f'--config={recipe}'])
  workdir = str(folder / 'run')
  loop.train_and_evaluate(config, workdir, guards.StopSignal(), Console())
  return workdir


def result(capsys, command, *arguments):
  assert command.main([*arguments, '--json']) == 0
  out, err = capsys.readouterr()
  return json.loads(out.splitlines()[-1]), err


@pytest.mark.parametrize(
  ('source', 'examples', 'changes'),
  [
    ('jpeg', 13, {**BATCH_NORM, 'data__mean': 'image', 'parallel': 'pmap'}),
    pytest.param(
      *('raw', 13),
      {**LRN, 'data__mean': 'image', 'parallel': 'shard_map'},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_ten_crops_equal_a_plain_loop(
  source, examples, changes, small, photographs, tmp_path, capsys
):
  changes = {**changes, 'data__path': str(photographs / source)}
  kind = {'jpeg': 'folder'}.get(source, source)
  workdir = train(tmp_path, small, data__source=kind, **changes)
  values, err = result(capsys, evaluate, '--workdir', workdir, '--crops', '10')
  assert 'warning' not in err
  shares, labels = loops.probabilities(workdir, 10)
  assert len(labels) == values['examples'] == examples
  assert examples % BATCH
  for key, value in loops.expected_values(shares, labels).items():
    assert values[key] == pytest.approx(value, rel=1e-5), key
  # Neither the center alone nor the corners give these numbers.
  center, _ = loops.probabilities(workdir, 1)
  assert np.abs(center - shares).max() > 1e-3


def test_what_ten_crops_are_not_good_for_is_said(small, tmp_path, capsys):
  workdir = train(
    tmp_path,
    small,
    num_steps=1,
    data__crop_size=28,
    data__random_flip=False,
  )
  arguments = ('--workdir', workdir, '--crops')
  _, err = result(capsys, evaluate, *arguments, 'center')
  assert 'warning' not in err
  commands_ = ((evaluate, arguments), (ensemble, (workdir, workdir, '--crops')))
  for command, words in commands_:
    _, err = result(capsys, command, *words, '10')
    assert f'{workdir}: half of the ten crops are mirrored' in err
    assert f'{workdir}: the ten crops are two' in err
