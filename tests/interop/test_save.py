"""A run of the real training command, out as .safetensors and back."""

import contextlib
import copy
import math
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax.errors import UserError
from alexnet_jax.interop import imported_run, load, save, torch_files
from alexnet_jax.interop.networks import Options
from alexnet_jax.models import variants
from alexnet_jax.training import build, checkpoint, state as state_lib
from tests.interop.conftest import read_weights, write_weights
from tests.system import commands


@pytest.fixture
def saved(trained_run, tmp_path, ask):
  path = tmp_path / 'run.safetensors'
  result, _ = commands.done(ask(save, f'--workdir {trained_run} {path}'))
  return path, result


def test_names_layouts_and_the_averaged_weights(trained_run, saved):
  path, result = saved
  state = checkpoint.open_run(trained_run).state
  tensors = safetensors.numpy.load_file(path)
  # Conv, norm after ReLU, pool; pad, conv, ReLU, pool. Dense, ReLU, dropout.
  names = {name.rsplit('.', 1)[0] for name in tensors}
  assert names == {
    f'{part}.{number}'
    for part, numbers in (('features', (0, 2, 5)), ('classifier', (0, 3)))
    for number in numbers
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


def test_everything_comes_back_bit_by_bit(trained_run, saved, tmp_path, ask):
  path, _ = saved
  run = checkpoint.open_run(trained_run)
  again = tmp_path / 'again'
  result, _ = commands.done(ask(load, f'--from torch {path} --workdir {again}'))
  assert result['classes_are_named']
  other = checkpoint.open_run(again)
  assert other.class_names == run.class_names
  assert other.config.model.to_dict() == run.config.model.to_dict()
  for key in ('resize_size', 'crop_size', 'channels', 'mean', 'std', 'std_rgb'):
    assert other.config.data[key] == run.config.data[key]
  for ours, theirs in (
    (run.state.ema_params, other.state.params),
    (run.state.batch_stats, other.state.batch_stats),
  ):
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
  np.testing.assert_array_equal(
    build.stored_mean(other.config, again),
    build.stored_mean(run.config, trained_run),
  )
  digest = state_lib.state_digest(state_lib.saved_tree(other.state))
  assert result['state_digest'] == digest
  assert int(other.state.step) == 0


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{tmp}/weights.pth', 'must end in .safetensors'),
    ('{tmp}/none/weights.safetensors', 'there is no folder'),
    ('{tmp}', 'is there already; give another name'),
    ('{tmp}/x.safetensors --checkpoint 99', "checkpoint '99' is not in"),
    ('{tmp}/x.safetensors --workdir {tmp}/a', 'is not the folder of a run'),
  ],
)
def test_unfit_arguments_are_refused(line, message, trained_run, tmp_path, ask):
  line = f'--workdir {trained_run} {line.format(tmp=tmp_path)}'
  commands.refused(ask(save, line), message)
  assert list(tmp_path.iterdir()) == []


def set_at(place, value):
  """Changes one key of the metadata, such as 'data.std'."""

  def change(fields):
    *path, last = place.split('.')
    for key in path:
      fields = fields[key]
    fields[last] = value

  return change


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda f: f.update(num_classes=3, class_names=['a', 'b', 'c']),
      r'expected head kernel \[16, 3\].* found classifier.3 kernel \[16, 4\]',
    ),
    (set_at('model.parent', None), "there is no key 'parent'"),
    (set_at('model.hidden', [16, 16]), 'MISFIT: expected dense2 '),
  ],
)
def test_tampered_metadata_is_refused(change, message, saved, tmp_path, ask):
  tensors, fields = read_weights(saved[0])
  change(fields)
  path = write_weights(saved[0], tensors, fields)
  line = f'--from torch {path} --workdir {tmp_path / "run"}'
  assert re.search(message, commands.refused(ask(load, line)))
  assert not (tmp_path / 'run').exists()


ODD = [None, -1, math.nan, 'x', {}, 10**400, [1e300] * 3]


def test_odd_metadata_is_taken_or_refused(saved):
  """No value of any key makes anything but an error that a user can mend."""
  tensors, fields = read_weights(saved[0])
  places = [*fields, 'model.depth', 'model.parent']
  for key in ('model', 'data', 'mean', 'claims'):
    places += [f'{key}.{inner}' for inner in fields[key]]
  taken = set()
  for place in places:
    for value in ODD:
      changed = copy.deepcopy(fields)
      set_at(place, value)(changed)
      path = write_weights(saved[0], tensors, changed)
      with contextlib.suppress(UserError):
        imported_run.make_config(torch_files.read(path, Options()), path='data')
        taken.add(place)
  # What is left are the few values that fit, such as another alpha.
  assert 5 < len(taken) < len(places) / 2
  assert not taken & {'data.crop_size', 'model.parent'}


def test_what_the_file_says_itself(saved):
  with pytest.raises(UserError, match='says itself'):
    torch_files.read(saved[0], Options(mean=(1, 2, 3)))
  for text in ('', '[]', '[' * 10**5, f'{{"a": 1{"0" * 5000}}}'):
    with pytest.raises(UserError, match=r'was not written by interop\.save'):
      torch_files.from_metadata(text)


def test_parts_that_pytorch_lacks_are_named():
  notes = save.foreign_parts(variants.fields('alexnet_source_release'))
  assert len(notes) == 3
  assert 'LRN of groups' in notes[0]
  for name in variants.VARIANTS.keys() - {'alexnet_source_release'}:
    notes = save.foreign_parts(variants.fields(name))
    assert len(notes) == name.startswith('alexnet_bn')
    assert not notes or 'need eps=0.001' in notes[0]
