"""A converted network in ONNX Runtime."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from alexnet_jax.interop import export
from alexnet_jax.interop import program_loader
from tests.system import commands

# They warn when they are imported: that is left to the tests.
if None in map(importlib.util.find_spec, ('onnxruntime', 'jax2onnx')):
  pytest.skip('needs the extra onnx', allow_module_level=True)

pytestmark = [
  pytest.mark.interop,
  # Of other packages that jax2onnx imports.
  pytest.mark.filterwarnings('ignore::DeprecationWarning'),
  pytest.mark.filterwarnings('ignore::FutureWarning'),
  pytest.mark.filterwarnings('ignore::UserWarning'),
]


@pytest.fixture(scope='module')
def lrn_run(tmp_path_factory):
  """A run with LRN in its other conventions and deviations of colors."""
  folder = tmp_path_factory.mktemp('run')
  recipe = commands.write_recipe(
    folder,
    num_steps=4,
    eval_every_steps=4,
    log_every_steps=4,
    data__std=1.0,
    data__std_rgb=(50.0, 60.0, 70.0),
    model__norm_layers=(1, 2),
    model__groups=(1, 2),
    model__block_order=('norm-pool-relu', 'relu-norm-spatial-pool'),
    model__lrn_convention='caffe',
    model__lrn_groups=2,
    model__dropout_scaling='evaluation',
  )
  commands.train(recipe, folder / 'run')
  return folder / 'run'


@pytest.fixture(autouse=True)
def ranks():
  """jax2onnx adds biases to more dimensions than they have."""
  with jax.numpy_rank_promotion('allow'):
    yield


@pytest.mark.parametrize('name', ['trained_run', 'lrn_run'])
def test_the_same_probabilities(name, request, tmp_path, command_result):
  import onnxruntime

  run, out = request.getfixturevalue(name), tmp_path / 'out'
  code, result, err = command_result(
    export.main, f'--workdir {run} --onnx {out}'
  )
  assert code == 0, err
  assert 'network.onnx' in result['sha256']
  about = json.loads((out / 'about.json').read_text())
  assert 0 <= about['onnx_difference'] <= export.TOLERANCE
  assert result['onnx_difference'] == about['onnx_difference']
  size = about['crop_size']
  assert f'network.onnx: input images uint8 [batch, {size}, {size}, 3]' in err
  program = program_loader.load(out)
  session = onnxruntime.InferenceSession(
    out / 'network.onnx', providers=['CPUExecutionProvider']
  )
  rng = np.random.default_rng(0)
  size = program.crop_size
  for count in (1, 5):
    patches = rng.integers(0, 256, (count, 3, 3, 3), np.uint8)
    images = patches.repeat(size // 3, 1).repeat(size // 3, 2)
    (found,) = session.run(['probabilities'], {'images': images})
    expected = program.probabilities(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert expected.std(0).max() > 1e-3


def test_another_network_is_refused(
  trained_run, tmp_path, command_result, monkeypatch
):
  import jax2onnx

  convert = jax2onnx.to_onnx

  def unfaithful(function, *arguments, **options):
    return convert(lambda x: function(x) * 0.999, *arguments, **options)

  monkeypatch.setattr(jax2onnx, 'to_onnx', unfaithful)
  out = tmp_path / 'out'
  line = f'--workdir {trained_run} --onnx {out}'
  code, _, err = command_result(export.main, line)
  assert code == 2
  assert 'its probabilities differ by up to' in err

  def failing(*arguments, **options):
    raise NotImplementedError('no plugin for the primitive')

  monkeypatch.setattr(jax2onnx, 'to_onnx', failing)
  code, _, err = command_result(export.main, line)
  assert code == 2
  assert 'NotImplementedError: no plugin for the primitive' in err
  assert not out.exists()
