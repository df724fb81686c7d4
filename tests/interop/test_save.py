"""A run of the real training command, out as .safetensors and back."""

import contextlib
import json
import math

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from alexnet_jax.errors import UserError
from alexnet_jax.interop import imported_run
from alexnet_jax.interop import load
from alexnet_jax.interop import metadata
from alexnet_jax.interop import save
from alexnet_jax.interop import torch_files
from alexnet_jax.models import variants
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import state as state_lib
from tests.system import commands

CHANGES = {
  'num_steps': 4,
  'eval_every_steps': 4,
  'log_every_steps': 4,
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with a mean image, averaged weights and batch norms."""
  folder = tmp_path_factory.mktemp('run')
  recipe = commands.write_recipe(
    folder,
    **CHANGES,
    ema_decay=0.9,
    data__mean='image',
    model__norm='batch',
    model__norm_layers=(1,),
    model__norm_hidden=(1,),
    model__paddings=('SAME', (1, 2)),
  )
  commands.train(recipe, folder / 'run')
  return folder / 'run'


@pytest.fixture
def saved(run, tmp_path, command_result):
  path = tmp_path / 'run.safetensors'
  code, result, err = command_result(save.main, '--workdir', run, path)
  assert code == 0, err
  return path, result


def state_of(run):
  opened = checkpoint.open_run(run)
  return opened.config, opened.class_names, opened.state


def test_names_layouts_and_the_averaged_weights(run, saved):
  path, result = saved
  _, _, state = state_of(run)
  tensors = safetensors.numpy.load_file(path)
  # Conv, norm after the ReLU, pool; pad, conv, ReLU, pool.
  names = {name.rsplit('.', 1)[0] for name in tensors}
  assert names == {
    *('features.0', 'features.2', 'features.5'),
    *('classifier.0', 'classifier.2', 'classifier.4'),
  }
  assert result['step'] == 4
  assert result['tensors'].keys() == tensors.keys()
  kernel = state.ema_params['conv2']['kernel']
  np.testing.assert_array_equal(
    tensors['features.5.weight'], np.transpose(kernel, (3, 2, 0, 1))
  )
  assert np.abs(kernel - state.params['conv2']['kernel']).max() > 0
  # One unit of the first dense layer, input by input.
  channels = kernel.shape[-1]
  dense = np.asarray(state.ema_params['dense1']['kernel'])
  size = round((len(dense) / channels) ** 0.5)
  weight = tensors['classifier.0.weight']
  for c, y, x in ((0, 0, 0), (3, 1, 2), (channels - 1, size - 1, 0)):
    ours = dense[(y * size + x) * channels + c]
    np.testing.assert_array_equal(weight[:, (c * size + y) * size + x], ours)


def test_everything_comes_back_bit_by_bit(run, saved, tmp_path, command_result):
  path, _ = saved
  config, names, state = state_of(run)
  copy = tmp_path / 'copy'
  code, result, err = command_result(
    load.main, '--from', 'torch', path, '--workdir', copy
  )
  assert code == 0, err
  assert result['classes_are_named']
  other_config, other_names, other = state_of(copy)
  assert other_names == names
  assert other_config.model.to_dict() == config.model.to_dict()
  for key in ('resize_size', 'crop_size', 'mean', 'std', 'std_rgb'):
    assert other_config.data[key] == config.data[key]
  jax.tree.map(np.testing.assert_array_equal, other.params, state.ema_params)
  jax.tree.map(
    np.testing.assert_array_equal, other.batch_stats, state.batch_stats
  )
  np.testing.assert_array_equal(
    build.stored_mean(other_config, copy),
    build.stored_mean(config, run),
  )
  digest = state_lib.state_digest(state_lib.saved_tree(other))
  assert result['state_digest'] == digest
  assert int(other.step) == 0
  # And once more: the same weights.
  again = tmp_path / 'again.safetensors'
  assert command_result(save.main, '--workdir', copy, again)[0] == 0
  first, second = map(safetensors.numpy.load_file, (path, again))
  for name in first.keys() | second.keys():
    np.testing.assert_array_equal(first[name], second[name])


def test_files_are_not_replaced_unless_asked(run, saved, command_result):
  path, _ = saved
  before = safetensors.numpy.load_file(path)
  path.write_bytes(b'something else')
  code, _, err = command_result(save.main, '--workdir', run, path)
  assert code == 2
  assert 'is there already; give --overwrite' in err
  assert path.read_bytes() == b'something else'
  arguments = ('--workdir', run, path, '--overwrite')
  assert command_result(save.main, *arguments)[0] == 0
  after = safetensors.numpy.load_file(path)
  assert after.keys() == before.keys()
  jax.tree.map(np.testing.assert_array_equal, after, before)
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('weights.pth', 'must end in .safetensors'),
    ('none/weights.safetensors', 'there is no folder'),
    ('.', 'must end in .safetensors'),
  ],
)
def test_unfit_places_are_refused(name, message, run, tmp_path, command_result):
  path = tmp_path / name
  code, _, err = command_result(save.main, '--workdir', run, path)
  assert code == 2
  assert message in err


def test_a_run_or_checkpoint_that_is_not_there(run, tmp_path, command_result):
  path = tmp_path / 'x.safetensors'
  for arguments, message in (
    (('--workdir', tmp_path / 'none'), 'is not the folder of a run'),
    (('--workdir', run, '--checkpoint', '99'), "checkpoint '99' is not in"),
  ):
    code, _, err = command_result(save.main, *arguments, path)
    assert code == 2
    assert message in err
  assert not path.exists()


def rewritten(path, change_text=None, change_tensors=None):
  """The file with other metadata or tensors."""
  with safetensors.safe_open(path, 'numpy') as file:
    text = file.metadata()
  tensors = safetensors.numpy.load_file(path)
  if change_tensors:
    change_tensors(tensors)
  if change_text:
    fields = json.loads(text['alexnet_jax'])
    change_text(fields)
    text['alexnet_jax'] = json.dumps(fields)
  safetensors.numpy.save_file(tensors, path, text)
  return path


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda f: f.pop('mean'), "'mean' is missing"),
    (lambda f: f.update(version=9), 'version 9, not 1'),
    (lambda f: f['mean'].update(float32='AAAA'), 'damaged'),
    (lambda f: f['mean'].update(float32='***'), 'damaged'),
    (lambda f: f.update(class_names=['a']), '1 class names for 4 classes'),
    (
      lambda f: f.update(num_classes=3, class_names=['a', 'b', 'c']),
      r'classifier.4.bias: expected \[3\], found \[4\]',
    ),
    (lambda f: f['data'].update(crop_size='24'), 'damaged'),
    (lambda f: f['data'].update(std=-1), 'damaged'),
    (lambda f: f['model'].update(norm='layer'), "norm is 'layer'"),
    (lambda f: f['model'].update(depth=3), r'config.model: .*depth'),
    (
      lambda f: f['model'].update(hidden=[16, 16]),
      r'classifier.7.weight: expected \[4, 16\], found nothing',
    ),
  ],
)
def test_tampered_metadata_is_refused(change, message, saved):
  path = rewritten(saved[0], change_text=change)
  with pytest.raises(UserError, match=message):
    torch_files.read(path)


ODD = (
  *(None, -1, 0, 1e300, math.inf, math.nan, '', 'x', [], [1], {}, True),
  *(10**400, [1e300] * 3, [None] * 2, ['x'] * 2, [[1]] * 2, [10**30] * 2),
)


def set_at(fields, path, value):
  *path, last = path
  for key in path:
    fields = fields[key]
  fields[last] = value


def test_odd_metadata_is_taken_or_refused(saved):
  """No value of any key makes anything but an error that a user can mend."""
  path = saved[0]
  with safetensors.safe_open(path, 'numpy') as file:
    text = file.metadata()['alexnet_jax']
  fields = json.loads(text)
  paths = [(key,) for key in fields] + [
    (key, inner) for key in ('model', 'data', 'mean') for inner in fields[key]
  ]
  paths += [('model', 'depth'), ('model', 'name'), ('model', 'parent')]
  taken = {}
  for place in paths:
    for value in ODD:
      changed = json.loads(text)
      set_at(changed, place, value)
      rewritten(path, change_text=lambda f, new=changed: f.update(new))
      with contextlib.suppress(UserError):
        imported_run.make_config(torch_files.read(path), path='data')
        taken.setdefault(place, []).append(value)
  # What is left are the few values that fit, such as another alpha.
  assert len(taken) > 10
  assert max(map(len, taken.values())) < 9
  assert ('data', 'crop_size') not in taken
  assert ('model', 'parent') not in taken


@pytest.mark.parametrize(
  ('place', 'value', 'message'),
  [
    (
      ('model', 'block_order'),
      [1, 2],
      r'block_order is \[1, 2\]|block_order is \(1, 2\)',
    ),
    (('model', 'width_multiplier'), math.inf, 'width_multiplier is inf'),
    (('model', 'width_multiplier'), 1e300, r'width_multiplier is 1e\+300'),
    (('model', 'num_classes'), None, 'num_classes of the model None'),
    (('model', 'parent'), None, "there is no key 'parent'"),
    (('num_classes',), math.inf, 'num_classes inf'),
    (('data', 'resize_size'), 3, 'images of 3 pixels'),
    (('data', 'std_rgb'), [1, 2], r'deviations \(1, 2\)'),
    (('data', 'std_rgb'), [1, 2, math.nan], 'a deviation of nan'),
    (('data', 'mean'), 'picture', "the mean 'picture'"),
  ],
)
def test_what_is_odd_is_said(place, value, message, saved):
  path = rewritten(saved[0], change_text=lambda f: set_at(f, place, value))
  with pytest.raises(UserError, match=message):
    torch_files.read(path)


def test_text_that_is_no_json_is_refused():
  for text in (
    '',
    '[]',
    '{',
    '3',
    'null',
    '[' * 10**5,
    f'{{"a": 1{"0" * 5000}}}',
  ):
    with pytest.raises(UserError, match=r'was not written by interop\.save'):
      metadata.from_text(text)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: t.pop('features.2.running_var'), 'running_var: expected'),
    (lambda t: t['features.0.weight'].fill(np.nan), 'finite numbers'),
    (
      lambda t: t.update({'classifier.0.bias': np.zeros(16, np.int32)}),
      'found int32',
    ),
    (lambda t: t.update(x=np.zeros(2, np.float32)), 'x: expected nothing'),
  ],
)
def test_tampered_weights_are_refused(change, message, saved):
  path = rewritten(saved[0], change_tensors=change)
  with pytest.raises(UserError, match=message):
    torch_files.read(path)


def test_truncated_files_are_refused(saved):
  path, _ = saved
  whole = path.read_bytes()
  for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match='get it again'):
      torch_files.read(path)


def test_what_the_file_says_itself_takes_no_options(saved):
  for options in (
    {'network': 'marvin'},
    {'crop_size': 28},
    {'mean': (1, 2, 3)},
  ):
    with pytest.raises(UserError, match='says itself'):
      torch_files.read(saved[0], **options)


def test_parts_that_pytorch_lacks_are_named():
  notes = save.foreign_parts(variants.fields('alexnet_source_release'))
  assert len(notes) == 3
  assert 'LRN of groups' in notes[0]
  for name in variants.VARIANTS.keys() - {'alexnet_source_release'}:
    assert save.foreign_parts(variants.fields(name)) == []
