"""Outputs of layers, against a network written by hand in numpy."""

import collections

import jax
import numpy as np
import PIL.Image
import pytest

import alexnet_jax
from alexnet_jax import files
from alexnet_jax.data import pixel_statistics
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import features, loading
from alexnet_jax.models import costs
from alexnet_jax.models.alexnet import AlexNet
from tests import by_hand
from tests.data import pictures
from tests.evaluation.conftest import read_csv, write_splits
from tests.system import commands

LAYERS = ['conv1', 'lrn1', 'pool1', 'conv2', 'pool2', 'dense1', 'head']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(folder of a run of two towers with averaged weights, its 22 images)."""
  folder = tmp_path_factory.mktemp('features')
  data = write_splits(folder / 'data', 8, 30)
  # Unreadable are the third and the last in their order.
  pictures.write(data, {'val/a/12.png': b'', 'val/b/29.png': b''})
  recipe = commands.write_recipe(
    folder,
    data__source='folder',
    data__path=str(folder / 'data'),
    data__mean='image',
    data__unreadable='skip',
    model__groups=(1, 2),
    model__norm_layers=(1,),
    model__dropout_scaling='evaluation',
    ema_decay=0.5,
    num_steps=3,
  )
  commands.train_here(recipe, folder / 'run')
  return folder / 'run', folder / 'data' / 'val'


def outputs(image, params, mean):
  """Returns {layer: output} of pixels [24, 24, 3], by hand."""

  def convolve(x, layer, groups):
    weights = layer['kernel'], layer['bias']
    return np.maximum(by_hand.convolve(x, *weights, 1, (1, 1), groups), 0)

  out = {'conv1': convolve((image - mean) / 60, params['conv1'], 1)}
  factors = by_hand.lrn_factors(out['conv1'], 5, 2, 1e-4, 0.75)
  out['lrn1'] = out['conv1'] * factors
  out['pool1'] = by_hand.pool(out['lrn1'])
  out['conv2'] = convolve(out['pool1'], params['conv2'], 2)
  out['pool2'] = by_hand.pool(out['conv2'])
  dense, head = params['dense1'], params['head']
  x = out['pool2'].reshape(-1) @ dense['kernel'] + dense['bias']
  out['dense1'] = np.maximum(x, 0)
  # The dropout of 0.5 halves what goes on, not the layer's output.
  out['head'] = out['dense1'] / 2 @ head['kernel'] + head['bias']
  return out


def read_rows(folder):
  header, *rows = read_csv(folder / 'examples.csv')
  assert header == ['row', 'name', 'label']
  return rows


def test_outputs_of_a_split_are_those_of_a_plain_network(
  trained, tmp_path, call
):
  """On four devices; batches of 8 do not divide 22, and two have no pixels."""
  (workdir, data), out = trained, tmp_path / 'new' / 'out'
  line = ['--workdir', workdir, '--layers', ','.join(LAYERS), '--out', out]
  result, _ = commands.done(call(features, *line, '--split', 'validation'))
  assert list(out.parent.iterdir()) == [out]
  names = sorted(data.rglob('*.png'))
  there = [name for name in names if name.stat().st_size]
  numbers = {name: str(row) for row, name in enumerate(there)}
  rows = read_rows(out)
  assert [name for _, name, _ in rows] == list(map(str, names))
  for row, name in zip(rows, names, strict=True):
    label = name.parent.name if name in numbers else ''
    assert row == [numbers.get(name, ''), str(name), label]
  broken = [str(name) for name in names if name not in numbers]
  assert [entry['file'] for entry in result['unreadable']] == broken
  state = jax.device_get(loading.load_network(str(workdir)).state)
  head, plain = state.ema_params['head'], state.params['head']
  assert not np.array_equal(head['bias'], plain['bias'])
  with np.load(workdir / pixel_statistics.MEAN_FILE) as file:
    mean = file['mean'][2:26, 2:26]
  found = {name: np.load(out / f'{name}.npy', mmap_mode='r') for name in LAYERS}
  assert {n: list(a.shape) for n, a in found.items()} == result['layers']
  assert {a.dtype for a in found.values()} == {np.dtype('float32')}
  for row, name in enumerate(there):
    pixels = np.asarray(PIL.Image.open(name))[2:26, 2:26]
    for layer, wanted in outputs(pixels, state.ema_params, mean).items():
      np.testing.assert_allclose(
        found[layer][row], wanted, rtol=1e-4, atol=1e-5, err_msg=layer
      )


def test_named_files_and_the_function_give_the_same(trained, tmp_path, call):
  workdir, data = trained
  names = sorted(data.rglob('*.png'))[:3]
  arguments = ('--workdir', workdir, '--layers', 'dense1', *names)
  answer = call(features, *arguments, '--out', tmp_path / 'out')
  commands.refused(answer, '1 cannot be read: the warnings above name them')
  assert [e['file'] for e in answer[1]['unreadable']] == [str(names[2])]
  rows = '0', '1', ''
  expected = [[row, str(n), ''] for row, n in zip(rows, names, strict=True)]
  assert read_rows(tmp_path / 'out') == expected
  run = alexnet_jax.open_run(workdir)
  given = run.features(names[:2], 'dense1')
  assert given.dtype == np.float32
  np.testing.assert_array_equal(np.load(tmp_path / 'out/dense1.npy'), given)
  with pytest.raises(UserError, match=r'cannot decode .*: the file is empty'):
    run.features(names, 'dense1')
  # None at all: nothing is left.
  last = *arguments[:-3], names[2], '--out', tmp_path / 'n'
  commands.refused(call(features, *last), 'none of the images can be read')
  assert list(tmp_path.iterdir()) == [tmp_path / 'out']


@pytest.mark.parametrize(
  ('arguments', 'complaint'),
  [
    ((), 'give either images or --split'),
    (('--split', 'train', '--out', 'tests'), 'tests is there already'),
    (('--split', 'train', '--layers', 'fc7'), "no layer 'fc7'; there are"),
    (('--split', 'train', '--layers', 'head'), 'make room'),
  ],
)
def test_wrong_arguments_leave_nothing(
  trained, tmp_path, call, monkeypatch, arguments, complaint
):
  usage = collections.namedtuple('Usage', 'free')
  monkeypatch.setattr(files.shutil, 'disk_usage', lambda _: usage(32))
  monkeypatch.chdir(commands.ROOT)
  given = f'--workdir {trained[0]} --layers dense1 --out {tmp_path / "x"}'
  commands.refused(call(features, *given.split(), *arguments), complaint)
  assert not list(tmp_path.iterdir())


def test_every_name_of_the_summary_and_its_relu():
  plain = {'num_classes': 3, 'channels': (4, 4), 'kernels': (3, 3)}
  plain |= {'strides': (1, 1), 'paddings': (1, 1), 'groups': (1, 1)}
  plain |= {'pool_layers': (1, 2), 'bias_layers': (), 'hidden': (5, 5)}
  paper = 'conv1 conv2 dense1 dense2'
  orders = {'block_order': ('norm-pool-relu', 'relu-norm-spatial-pool')}
  before = {'norm_before_relu': True}
  for fields, rectified in (
    ({}, paper),
    ({'dropout_position': 'before'}, paper),
    (orders, 'pool1 conv2 dense1 dense2'),
    ({**before, 'norm': 'batch'}, 'norm1 norm2 dense1 dense2'),
    ({**before, 'norm_layers': (2,)}, 'conv1 lrn2 dense1 dense2'),
    ({**before, 'norm': 'none'}, paper),
  ):
    model = AlexNet(**plain, **fields)
    _, rows = costs.layer_table(model, (24, 24, 3))
    found = [name for name, *_ in rows if model.relu_follows(name)]
    assert found == rectified.split(), fields
  # Half of the channels in each of two towers.
  towers = AlexNet(**plain | {'groups': (1, 2)})
  _, rows = costs.layer_table(towers, (24, 24, 3))
  assert rows[3] == ('conv2', (11, 11, 4), 11 * 11 * 3 * 3 * 2 * 4)
