"""PyTorch's own forward pass and its own files as the oracle."""

import collections
import pickle
import zipfile

import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.interop import networks, torch_files
from alexnet_jax.interop.networks import Options
from tests.interop.conftest import HIDDEN, NARROW, our_logits, random_images

torch = pytest.importorskip('torch')
safetensors_torch = pytest.importorskip('safetensors.torch')

from tests.interop import torch_networks  # noqa: E402 (needs torch)

pytestmark = pytest.mark.interop

# network: (what builds it in PyTorch, with what, width of images)
NETWORKS = {
  'alexnet': (torch_networks.paper, {}, 224),
  'alexnet_caffe': (torch_networks.paper, {'caffe': True}, 227),
  'alexnet_bn': (torch_networks.batch_norm, {}, 224),
}
MARVIN = Options('marvin')


def build(name, seed=0):
  make, options, _ = NETWORKS[name]
  return torch_networks.randomised(make(10, NARROW, HIDDEN, **options), seed)


def save_model(network, path, prefix=''):
  # One contiguous copy: safetensors refuses views.
  state = {
    prefix + name: tensor.contiguous()
    for name, tensor in network.state_dict().items()
  }
  safetensors_torch.save_file(state, path)


def marvin():
  nn = torch.nn
  parts = {'conv1': nn.Conv2d(3, 32, 3), 'relu1': nn.ReLU()}
  parts |= {'pool1': nn.MaxPool2d(2), 'conv2': nn.Conv2d(32, 64, 3)}
  parts |= {'relu2': nn.ReLU(), 'pool2': nn.MaxPool2d(2), 'flat': nn.Flatten()}
  parts |= {'fc3': nn.Linear(64 * 5 * 5, 256), 'relu3': nn.ReLU()}
  parts |= {'fc4': nn.Linear(256, 256), 'relu4': nn.ReLU()}
  parts['fc10'] = nn.Linear(256, 7)
  named = nn.Sequential(collections.OrderedDict(parts))
  return torch_networks.randomised(named)


def test_torchvision(tmp_path, caplog, narrow):
  whole = torch_networks.randomised(torch_networks.torchvision_alexnet(HIDDEN))
  # As PyTorch's ImageNet example saves AlexNet: `features` alone is split.
  state = {
    name.replace('features.', 'features.module.'): tensor
    for name, tensor in whole.state_dict().items()
  }
  path = tmp_path / 'model_best.pth.tar'
  torch.save({'epoch': 90, 'state_dict': state}, path)
  network = torch_files.read(path, Options('alexnet_torchvision'))
  images = random_images(224)
  expected = torch_networks.logits(whole, images)
  np.testing.assert_allclose(our_logits(network, images), expected, atol=1e-4)
  assert expected.std() > 0.1
  assert network.num_classes == 1000
  np.testing.assert_allclose(network.mean, [123.675, 116.28, 103.53])
  assert network.data['std_rgb'] == pytest.approx((58.395, 57.12, 57.375))
  assert network.data['resize_size'] == 256
  assert caplog.text == ''  # its preparation is documented: no guess


@pytest.mark.parametrize('name', NETWORKS)
def test_names_and_logits_both_ways(name, narrow, tmp_path, caplog):
  size = NETWORKS[name][-1]
  theirs, path = build(name), tmp_path / 'a.safetensors'
  # Without `model.`, `classifier` would come before the norms of `features`.
  save_model(theirs, path, 'model.')
  epsilon = 1e-5 if '_bn' in name else 0
  options = Options(name, size, (0,) * 3, (1,) * 3, batch_norm_epsilon=epsilon)
  network = torch_files.read(path, options)
  assert caplog.text == ''  # names and all numbers are known
  images = random_images(size)
  expected = torch_networks.logits(theirs, images)
  np.testing.assert_allclose(our_logits(network, images), expected, atol=1e-4)
  assert expected.std() > 0.1
  # And into a module with other weights.
  torch_files.write(path, network)
  other = build(name, seed=1)
  assert np.abs(torch_networks.logits(other, images) - expected).max() > 0.1
  other.load_state_dict(safetensors_torch.load_file(path), strict=True)
  np.testing.assert_array_equal(torch_networks.logits(other, images), expected)


@pytest.mark.parametrize(
  ('wrappers', 'prefix', 'head'),  # the last in natural order, or the first
  [
    ((), '', 'a'),
    (('state_dict', 'model'), 'module.', 'fc10'),
    (('net',), 'net._orig_mod.model.', 'a'),
  ],
)
def test_other_names_and_wrappers(wrappers, prefix, head, tmp_path, caplog):
  theirs = marvin()
  state = {
    prefix + name.replace('fc10', head): tensor
    for name, tensor in theirs.state_dict().items()
  }
  state['n_averaged'] = torch.tensor(3)
  for wrapper in reversed(wrappers):
    moments = {0: {'exp_avg': torch.zeros(3)}}
    state = {'epoch': 3, 'optimizer': {'state': moments}, wrapper: state}
  torch.save(state, tmp_path / 'marvin.pt')
  options = Options('marvin', mean=(1, 2, 3), std=(4.0, 5.0, 6.0))
  network = torch_files.read(tmp_path / 'marvin.pt', options)
  assert f'dense1 is fc3, dense2 is fc4, head is {head}' in caplog.text
  images = random_images(28, 5)
  expected = torch_networks.logits(theirs, images)
  np.testing.assert_allclose(our_logits(network, images), expected, atol=1e-4)
  assert network.num_classes == 7
  assert network.mean.tolist() == [1, 2, 3]
  assert network.data['std_rgb'] == (4.0, 5.0, 6.0)
  assert (network.data['resize_size'], network.data['crop_size']) == (28, 28)


@pytest.mark.parametrize(
  ('widths', 'last'),
  [
    ({'z': (9216, 4096), 'fc7': (4096, 4096), 'out': (4096, 10)}, 'out'),
    # As many classes as hidden units, or as the features: names decide.
    ({'fc6': (9216, 64), 'fc7': (64, 64), 'fc8': (64, 64)}, 'fc8'),
    ({'fc9': (16, 64), 'fc10': (64, 16)}, 'fc10'),
    # And where two lead nowhere.
    ({'fc1': (9, 4), 'fc2': (4, 3), 'fc10': (4, 2)}, 'fc10'),
  ],
)
def test_the_last_dense_layer(widths, last):
  assert networks.last_dense(widths) == last


@pytest.mark.parametrize(
  ('suffix', 'save'),
  [  # the content decides, not the suffix
    ('.pth.tar', safetensors_torch.save_file),
    ('.safetensors', torch.save),
  ],
)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float64'])
def test_other_dtypes_become_float32(dtype, suffix, save, tmp_path, caplog):
  state = {
    name: tensor.to(getattr(torch, dtype))
    for name, tensor in marvin().state_dict().items()
  }
  path = tmp_path / f'm{suffix}'
  save(state, path)
  kernel = torch_files.read(path, MARVIN).params['dense2']['kernel']
  assert f'numbers of {dtype} become float32' in caplog.text
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel, state['fc4.weight'].float().T)


@pytest.mark.parametrize(
  ('name', 'options', 'warning'),
  [
    (
      'marvin',
      {},
      'taken: --crop_size 28 and --mean 123.675,116.28,103.53 and --std 58.395',
    ),
    (
      'alexnet_bn',
      {'mean': (1, 2, 3), 'std': (4, 5, 6), 'crop_size': 224},
      'taken: --batch_norm_epsilon 0.001. Give',
    ),
  ],
)
def test_guesses_are_warned_of(
  name, options, warning, narrow, tmp_path, caplog
):
  theirs, path = marvin() if name == 'marvin' else build(name), tmp_path / 'm'
  torch.save(theirs.state_dict(), path)
  network = torch_files.read(path, Options(name, **options))
  assert warning in caplog.text
  mean = options.get('mean', (123.675, 116.28, 103.53))
  np.testing.assert_allclose(network.mean, mean)


class Malicious:
  """Runs code when a pickle of it is read."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (open, (str(self.path), 'w'))


@pytest.mark.parametrize('how', ['pickle', 'torch.save', 'legacy'])
def test_a_pickle_with_code_is_refused_and_not_executed(how, tmp_path):
  marker, path = tmp_path / 'executed', tmp_path / 'weights.pth'
  contents = {'features.0.weight': Malicious(marker)}
  if how == 'pickle':
    path.write_bytes(pickle.dumps(contents))
  else:
    zipped = how == 'torch.save'
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
  refusal = r'refuses to read .*execute code'
  if how != 'pickle':  # its protocol is another: PyTorch names no global
    refusal += r' \(it asks for (_?io\.)?open\)'
  with pytest.raises(UserError, match=refusal) as error:
    torch_files.read(path, MARVIN)
  for advice in ('\x1b', 'weights_only', 'add_safe_globals'):
    assert advice not in str(error.value)
  assert not marker.exists()


@pytest.mark.parametrize('zipped', [True, False])  # as before PyTorch 1.6
def test_shared_numbers_and_parts_come_in(zipped, tmp_path):
  whole = torch.arange(24.0).reshape(4, 6)
  tensors = {
    'tied': whole,
    'part': whole[1:3, ::2],
    'turned': whole.T,
    'row': whole[0].expand(10**7, 6),
    'short': whole.bfloat16().T,
    'parameter': torch.nn.Parameter(whole + 1),
    'none': torch.zeros(2**40, 0),
    # Names that would become one stay.
    'module.w': torch.zeros(1),
    'w': torch.ones(1),
  }
  path = tmp_path / 'a.pth'
  torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
  found, _ = torch_files.load_tensors(path)
  assert found.keys() == tensors.keys()
  for name, tensor in tensors.items():
    expected = tensor.detach()[:100].float().numpy()
    np.testing.assert_array_equal(found[name][:100], expected)


ONES = torch.ones


@pytest.mark.parametrize(
  ('name', 'tensor', 'message'),
  [
    ('extra', ONES(3), r'MISFIT: expected nothing, found extra'),
    ('fc3.bias', torch.nan * ONES(256), 'fc3 bias: expected finite numbers'),
    ('fc3.bias', ONES(256).int(), 'fc3 bias: expected float32.*found int32'),
    ('fc10.weight', ONES(1, 256), 'fc10: expected a head of two classes'),
    ('fc4.bias', ONES(0), 'fc4 bias: expected numbers, found none'),
    # A number of four bytes that would fill the memory.
    ('fc10.weight', ONES(1).expand(10**9, 256), 'fc10 kernel: expected a num'),
  ],
)
def test_misfits_are_refused(name, tensor, message, tmp_path):
  state = marvin().state_dict() | {name: tensor}
  torch.save(state, path := tmp_path / 'm.pth')
  with pytest.raises(UserError, match=message):
    torch_files.read(path, MARVIN)


def test_negative_variances_are_refused(narrow, tmp_path):
  theirs = build('alexnet_bn')
  theirs.features[2].running_var[3] = -1e-3
  save_model(theirs, tmp_path / 'a.safetensors')
  with pytest.raises(UserError, match=r'features.2 var: .*negative'):
    torch_files.read(tmp_path / 'a.safetensors', Options('alexnet_bn'))


@pytest.mark.parametrize('damage', ['compressed', 'a bit'])
def test_an_archive_that_pytorch_would_misread(damage, tmp_path):
  """It checks no sums, and takes what is compressed for numbers."""
  path = tmp_path / 'a.pth'
  state = marvin().state_dict()
  torch.save(state, path)
  if damage == 'compressed':
    with zipfile.ZipFile(path) as archive:
      records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, record in records.items():
        archive.writestr(name, record)
  else:
    content = bytearray(path.read_bytes())
    content[content.index(state['fc4.weight'].numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)
  message = 'is compressed' if damage == 'compressed' else 'Bad CRC-32'
  with pytest.raises(UserError, match=message):
    torch_files.read(path, MARVIN)
