"""PyTorch's own forward pass and its own files as the oracle."""

import pickle
import re

import numpy as np
import pytest

from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.interop import metadata
from alexnet_jax.interop import networks
from alexnet_jax.interop import save
from alexnet_jax.interop import torch_files
from alexnet_jax.interop import torch_layout
from alexnet_jax.models import variants

torch = pytest.importorskip('torch')
safetensors_torch = pytest.importorskip('safetensors.torch')

from tests.interop import torch_networks  # noqa: E402 (needs torch)

pytestmark = pytest.mark.interop

# As torchvision's documentation lists the state dict of alexnet().
TORCHVISION_SHAPES = {
  'features.0.weight': (64, 3, 11, 11),
  'features.0.bias': (64,),
  'features.3.weight': (192, 64, 5, 5),
  'features.3.bias': (192,),
  'features.6.weight': (384, 192, 3, 3),
  'features.6.bias': (384,),
  'features.8.weight': (256, 384, 3, 3),
  'features.8.bias': (256,),
  'features.10.weight': (256, 256, 3, 3),
  'features.10.bias': (256,),
  'classifier.1.weight': (4096, 9216),
  'classifier.1.bias': (4096,),
  'classifier.4.weight': (4096, 4096),
  'classifier.4.bias': (4096,),
  'classifier.6.weight': (1000, 4096),
  'classifier.6.bias': (1000,),
}
NARROW = (16, 32, 48, 48, 32)
# variant: (module of PyTorch with few channels, width of images)
NETWORKS = {
  'alexnet': (lambda: torch_networks.paper(10, NARROW, (64, 48), False), 224),
  'alexnet_caffe': (
    lambda: torch_networks.paper(10, NARROW, (64, 48), True),
    227,
  ),
  'alexnet_bn': (
    lambda: torch_networks.batch_norm(10, NARROW, (64, 48), False),
    224,
  ),
  'alexnet_bn_all': (
    lambda: torch_networks.batch_norm(10, NARROW, (64, 48), True, 6),
    227,
  ),
}


def fields(variant):
  return {**variants.fields(variant), 'channels': NARROW, 'hidden': (64, 48)}


def numpy_state(network):
  return {name: t.numpy() for name, t in network.state_dict().items()}


def description(model, crop_size, classes, mean='channel'):
  config = make_config()
  config.model.update(model)
  config.data.crop_size = crop_size
  config.data.mean = mean
  shape = (crop_size, crop_size, 3) if mean == 'image' else (3,)
  rng = np.random.default_rng(5)
  values = rng.uniform(0, 255, shape).astype(np.float32)
  names = [f'name {i}' for i in range(classes)]
  return metadata.of_run(config, values, names, 7)


def save_model(network, path):
  # One contiguous copy: safetensors refuses views.
  safetensors_torch.save_file(
    {name: t.contiguous() for name, t in network.state_dict().items()}, path
  )


@pytest.fixture(scope='module')
def whole():
  """torchvision's AlexNet in full, with random weights."""
  return torch_networks.randomised(torch_networks.torchvision_alexnet())


def test_the_names_are_torchvisions(whole):
  ours = {}
  for layer in torch_layout.layers(
    variants.fields('alexnet_torchvision'), 1000, 224
  ):
    ours |= layer.torch_shapes()
  assert ours == TORCHVISION_SHAPES
  shapes = {name: t.shape for name, t in whole.state_dict().items()}
  assert ours == shapes


def test_torchvision_itself_has_these_names():
  try:
    from torchvision import models
  except Exception as error:  # built for another torch
    pytest.skip(f'torchvision cannot be imported: {error}')
  with torch.device('meta'):
    found = models.alexnet().state_dict()
  assert {n: tuple(t.shape) for n, t in found.items()} == TORCHVISION_SHAPES


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_torchvision_in_full(
  whole, suffix, tmp_path, random_images, our_logits
):
  path = tmp_path / f'alexnet{suffix}'
  if suffix == '.pth':
    torch.save(whole.state_dict(), path)
  else:
    save_model(whole, path)
  imported = torch_files.read_torchvision(path)
  images = random_images(224)
  expected = torch_networks.logits(whole, images)
  np.testing.assert_allclose(our_logits(imported, images), expected, atol=1e-4)
  assert expected.std() > 0.1
  assert imported.num_classes == 1000
  np.testing.assert_allclose(imported.mean, [123.675, 116.28, 103.53])
  assert imported.data['std_rgb'] == pytest.approx((58.395, 57.12, 57.375))
  assert imported.data['resize_size'] == 256


@pytest.mark.parametrize('variant', NETWORKS)
def test_names_and_logits_both_ways(
  variant, tmp_path, random_images, our_logits
):
  make, size = NETWORKS[variant]
  theirs = torch_networks.randomised(make())
  model = fields(variant)
  plan = torch_layout.layers(model, 10, size)
  params, stats = torch_layout.from_torch(numpy_state(theirs), plan)
  images = random_images(size)
  expected = torch_networks.logits(theirs, images)
  path = tmp_path / 'ours.safetensors'
  save.write(path, params, stats, description(model, size, 10))
  imported = torch_files.read(path)
  np.testing.assert_allclose(our_logits(imported, images), expected, atol=1e-4)
  assert expected.std() > 0.1
  # And into a module with other weights.
  other = torch_networks.randomised(make(), seed=1)
  assert np.abs(torch_networks.logits(other, images) - expected).max() > 0.1
  other.load_state_dict(safetensors_torch.load_file(path), strict=True)
  np.testing.assert_array_equal(torch_networks.logits(other, images), expected)


@pytest.mark.parametrize(
  ('variant', 'make'),
  [
    (
      'alexnet_caffe',
      lambda: torch_networks.paper(
        20, (96, 256, 384, 384, 256), (4096, 4096), True
      ),
    ),
    (
      'alexnet_bn_all',
      lambda: torch_networks.batch_norm(
        20, (96, 256, 384, 384, 256), (4096, 4096), True
      ),
    ),
  ],
)
def test_a_whole_network_by_its_name(
  variant, make, tmp_path, random_images, our_logits
):
  theirs = torch_networks.randomised(make())
  path = tmp_path / 'theirs.safetensors'
  save_model(theirs, path)
  imported = torch_files.read(path, variant, crop_size=227)
  images = random_images(227)
  np.testing.assert_allclose(
    our_logits(imported, images),
    torch_networks.logits(theirs, images),
    atol=1e-4,
  )


def marvin():
  nn = torch.nn

  class Marvin(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1, self.conv2 = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3)
      self.fc3 = nn.Linear(64 * 5 * 5, 256)
      self.fc4, self.fc10 = nn.Linear(256, 256), nn.Linear(256, 7)

    def forward(self, x):
      for layer in (self.conv1, self.conv2):
        x = nn.functional.max_pool2d(layer(x).relu(), 2)
      x = self.fc4(self.fc3(x.flatten(1)).relu()).relu()
      return self.fc10(x)

  return torch_networks.randomised(Marvin())


@pytest.mark.parametrize('wrapped', ['', 'state_dict', 'model', 'both'])
def test_other_names_and_wrappers(
  wrapped, tmp_path, random_images, our_logits, caplog
):
  theirs = marvin()
  state = theirs.state_dict()
  if wrapped:
    state = {f'module.{name}': tensor for name, tensor in state.items()}
    state = {'epoch': 3, 'model' if wrapped != 'state_dict' else wrapped: state}
  if wrapped == 'both':
    state = {'state_dict': state['model'], 'optimizer': {'lr': 0.1}}
  path = tmp_path / 'marvin.pt'
  torch.save(state, path)
  imported = torch_files.read(
    path, 'marvin', mean=(1, 2, 3), std=(4.0, 5.0, 6.0)
  )
  assert 'conv2' in caplog.text
  assert 'head' not in caplog.text or 'fc10' in caplog.text
  images = random_images(28, 5)
  np.testing.assert_allclose(
    our_logits(imported, images),
    torch_networks.logits(theirs, images),
    atol=1e-4,
  )
  assert imported.num_classes == 7
  assert imported.mean.tolist() == [1, 2, 3]
  assert imported.data['std_rgb'] == (4.0, 5.0, 6.0)
  assert (imported.data['resize_size'], imported.data['crop_size']) == (28, 28)


def test_other_dtypes_become_float32_and_that_is_said(tmp_path, caplog):
  state = marvin().state_dict()
  for dtype in (torch.float16, torch.bfloat16, torch.float64):
    lower = {name: tensor.to(dtype) for name, tensor in state.items()}
    wanted = {name: tensor.float().numpy() for name, tensor in lower.items()}
    for path in (tmp_path / 'm.safetensors', tmp_path / 'm.pth'):
      if path.suffix == '.pth':
        torch.save(lower, path)
      else:
        safetensors_torch.save_file(lower, path)
      caplog.clear()
      imported = torch_files.read(path, 'marvin')
      assert str(dtype).split('.')[1] in caplog.text
      kernel = imported.params['dense2']['kernel']
      assert kernel.dtype == np.float32
      np.testing.assert_array_equal(kernel, wanted['fc4.weight'].T)


class Malicious:
  """What a pickle can do while it is read."""

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
    torch.save(
      contents, path, _use_new_zipfile_serialization=how == 'torch.save'
    )
  refusal = r'refuses to read .*execute code'
  if how != 'pickle':  # its protocol is another: PyTorch names no global
    refusal += r' \(it asks for (_?io\.)?open\)'
  for read in (
    torch_files.read_torchvision,
    lambda path: torch_files.read(path, 'marvin'),
  ):
    with pytest.raises(UserError, match=refusal) as error:
      read(path)
    for advice in ('\x1b', 'weights_only', 'add_safe_globals'):
      assert advice not in str(error.value)
  assert not marker.exists()
  with pytest.warns(ResourceWarning):  # the test itself can fail
    pickle.loads(pickle.dumps(Malicious(marker)))
  assert marker.exists()


def test_a_whole_module_is_refused(tmp_path):
  path = tmp_path / 'module.pth'
  torch.save(torch.nn.Linear(3, 3), path)
  with pytest.raises(UserError, match=r'whole module.*for torch\.nn\.modules'):
    torch_files.read(path, 'marvin')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('damage', ['cut', 'text', 'other kind', 'empty'])
def test_damaged_files_are_refused(suffix, damage, tmp_path):
  good = {s: tmp_path / f'good{s}' for s in ('.pth', '.safetensors')}
  torch.save(marvin().state_dict(), good['.pth'])
  save_model(marvin(), good['.safetensors'])
  other = next(path for s, path in good.items() if s != suffix)
  contents = {
    'cut': good[suffix].read_bytes()[:-1000],
    'text': b'<html>not found</html>',
    'other kind': other.read_bytes(),
    'empty': b'',
  }[damage]
  path = tmp_path / f'damaged{suffix}'
  path.write_bytes(contents)
  with pytest.raises(UserError, match=re.escape(str(path))):
    torch_files.read(path, 'marvin')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda s: s.pop('fc4.bias'), r'MISFIT: expected .*classifier.3 weight'),
    (
      lambda s: s.update(extra=torch.ones(3)),
      r'MISFIT: expected nothing, found ',
    ),
    (
      lambda s: s.update({'conv2.weight': torch.ones(64, 32, 5, 5)}),
      r'weight \[64, 32, 3, 3\].*found conv2 weight \[64, 32, 5, 5\]',
    ),
    (
      lambda s: s['fc3.weight'].__setitem__((0, 0), torch.nan),
      'classifier.0.weight: expected finite numbers, found 1',
    ),
    (
      lambda s: s.update({'fc3.bias': torch.ones(256, dtype=torch.int32)}),
      'classifier.0.bias: expected float32.*found int32',
    ),
    (
      lambda s: s.update({'fc3.bias': 1e300 * torch.ones(256).double()}),
      'expected finite numbers, found 256',
    ),
    (lambda s: s.clear(), 'expected dense layers.*found nothing'),
  ],
)
def test_misfits_are_refused(change, message, tmp_path):
  state = marvin().state_dict()
  change(state)
  path = tmp_path / 'm.safetensors'
  safetensors_torch.save_file(state, path)
  with pytest.raises(UserError, match=message):
    torch_files.read(path, 'marvin')


def test_torchvision_takes_no_other_names(tmp_path):
  path = tmp_path / 'm.safetensors'
  save_model(marvin(), path)
  with pytest.raises(UserError) as error:
    torch_files.read_torchvision(path)
  text = str(error.value)
  assert 'features.0.weight: expected [64, 3, 11, 11], found nothing' in text
  assert 'conv1.weight: expected nothing, found [32, 3, 3, 3]' in text


def test_torchvisions_average_pooling_changes_nothing():
  """It averages to 6 x 6, which the last feature map is already."""
  model = networks.named_fields('alexnet_torchvision')
  size = networks.image_sizes('alexnet_torchvision')['crop_size']
  plan = torch_layout.layers(model, 1, size)
  assert [k.features for k in plan if k.features] == [(256, 6, 6)]


def test_names_of_data_parallel_within_torchvisions(whole, tmp_path):
  """As PyTorch's ImageNet example saves AlexNet: `features` alone is split."""
  state = {
    name.replace('features.', 'features.module.'): tensor
    for name, tensor in whole.state_dict().items()
  }
  torch.save({'epoch': 90, 'state_dict': state}, tmp_path / 'a.pth')
  imported = torch_files.read_torchvision(tmp_path / 'a.pth')
  np.testing.assert_array_equal(
    imported.params['conv5']['kernel'],
    whole.features[10].weight.detach().numpy().transpose(2, 3, 1, 0),
  )


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    (
      {},
      '--mean 123.675,116.28,103.53 and --std 58.395,57.12,57.375: give',
    ),
    ({'mean': (1, 2, 3)}, 'taken are --std 58.395,57.12,57.375: give'),
    ({'std': (4, 5, 6)}, 'taken are --mean 123.675,116.28,103.53: give'),
    ({'mean': (1, 2, 3), 'std': (4, 5, 6)}, ''),
  ],
)
def test_a_preparation_that_is_guessed_is_said(options, said, tmp_path, caplog):
  save_model(marvin(), tmp_path / 'm.safetensors')
  imported = torch_files.read(tmp_path / 'm.safetensors', 'marvin', **options)
  messages = [r.getMessage() for r in caplog.records if 'pixels' in r.msg]
  assert len(messages) == bool(said)
  assert said in ''.join(messages)
  mean = options.get('mean', torch_files.TORCHVISION_MEAN)
  np.testing.assert_allclose(imported.mean, mean)


def test_of_torchvisions_network_its_preparation_is_no_guess(
  whole, tmp_path, caplog
):
  save_model(whole, tmp_path / 'a.safetensors')
  torch_files.read(tmp_path / 'a.safetensors', 'alexnet_torchvision')
  torch_files.read_torchvision(tmp_path / 'a.safetensors')
  assert caplog.text == ''


@pytest.mark.parametrize(
  'name', ['predictions', 'output', 'out', 'logits', 'classifier_head', 'a']
)
def test_the_layer_of_the_logits_may_have_any_name(name, tmp_path):
  """Of others the natural order decides, in which these are before fc3."""
  theirs = marvin().state_dict()
  state = {n.replace('fc10', name): tensor for n, tensor in theirs.items()}
  torch.save(state, tmp_path / 'm.pth')
  imported = torch_files.read(tmp_path / 'm.pth', 'marvin')
  assert imported.num_classes == 7
  for ours, layer in (('dense1', 'fc3'), ('dense2', 'fc4'), ('head', 'fc10')):
    np.testing.assert_array_equal(
      imported.params[ours]['bias'], theirs[f'{layer}.bias']
    )


def test_negative_variances_are_refused():
  theirs = torch_networks.randomised(NETWORKS['alexnet_bn'][0]())
  state = {name: array.copy() for name, array in numpy_state(theirs).items()}
  state['features.2.running_var'][3] = -1e-3
  plan = torch_layout.layers(fields('alexnet_bn'), 10, 224)
  with pytest.raises(UserError, match=r'features.2.running_var: .*negative'):
    torch_layout.from_torch(state, plan)


def test_a_file_without_metadata_needs_a_network(tmp_path):
  path = tmp_path / 'm.safetensors'
  save_model(marvin(), path)
  with pytest.raises(UserError, match='name it with --network'):
    torch_files.read(path)
  with pytest.raises(UserError, match="no network 'marwin'; there are"):
    torch_files.read(path, 'marwin')


def test_other_suffixes_are_refused(tmp_path):
  path = tmp_path / 'weights.bin'
  path.write_bytes(b'1')
  with pytest.raises(UserError, match=r'\.safetensors, \.pth, \.pt'):
    torch_files.read(path, 'marvin')
