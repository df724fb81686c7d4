"""Weights of networks as one writes them in Keras, in its own files."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.interop import imported_run, keras_files
from alexnet_jax.interop.networks import Options
from tests.interop.conftest import HIDDEN, NARROW, our_logits, random_images

os.environ.setdefault('KERAS_BACKEND', 'jax')
keras = pytest.importorskip('keras')
h5py = pytest.importorskip('h5py')
layers = keras.layers

pytestmark = [
  pytest.mark.interop,
  pytest.mark.usefixtures('narrow'),
  # Of Keras' own variables, which numpy 2 asks whether they copy.
  pytest.mark.filterwarnings('ignore:__array__:DeprecationWarning'),
]

CLASSES = 7
KERNELS = (11, 5, 3, 3, 3)
MARVIN = Options('marvin')


def batch_norm():
  """Before the ReLU of the first two convolutions."""
  out = [keras.Input((224, 224, 3))]
  for number, (units, kernel) in enumerate(zip(NARROW, KERNELS, strict=True)):
    strides = 1 if number else 4
    out.append(layers.Conv2D(units, kernel, strides, 'same'))
    out += [layers.BatchNormalization()] * (number < 2)
    out.append(layers.Activation('relu'))
    out += [layers.MaxPooling2D(3, 2)] if number in (0, 1, 4) else []
  return out + head()


def head(hidden=HIDDEN):
  out = [layers.Flatten()]
  for units in hidden:
    out += [layers.Dense(units, activation='relu'), layers.Dropout(0.5)]
  return [*out, layers.Dense(CLASSES, activation='softmax')]


def marvin(channels=3):
  return [
    keras.Input((28, 28, channels)),
    layers.Conv2D(32, 3, activation='relu'),
    layers.MaxPooling2D(2),
    layers.Conv2D(64, 3, activation='relu'),
    layers.MaxPooling2D(2),
    *head((256, 256)),
  ]


NETWORKS = {'alexnet_bn': (batch_norm, 224), 'marvin': (marvin, 28)}


def build(make):
  """A Keras network with random weights, statistics and all."""
  network = keras.Sequential(make())
  rng = np.random.default_rng(0)
  for weight in network.weights:
    if len(weight.shape) > 1:
      scale = (2 / np.prod(weight.shape[:-1])) ** 0.5
      weight.assign(rng.normal(0, scale, weight.shape))
    elif 'seed' not in weight.path:
      one = weight.name in ('gamma', 'moving_variance')
      draws = rng.normal(0, 0.2, weight.shape)
      weight.assign(1 + np.abs(draws) if one else draws)
  return network


@pytest.fixture
def saved(tmp_path):
  """Writes a network with Keras itself."""

  def save(name='marvin'):
    network, path = build(NETWORKS[name][0]), tmp_path / 'keras.weights.h5'
    network.save_weights(path)
    return network, path

  return save


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_are_those_of_keras(name, saved, caplog):
  network, path = saved(name)
  size = NETWORKS[name][1]
  images = random_images(size)
  imported = keras_files.read(path, Options(name))
  warning = f'taken: --crop_size {size} and --mean 0,0,0 and --std 255,255,255'
  if name != 'marvin':
    warning += ' and --batch_norm_epsilon 0.001'
  assert warning in caplog.text
  assert imported.data['std_rgb'] == (255.0,) * 3
  assert imported.num_classes == CLASSES
  assert imported.data['crop_size'] == size
  assert_logits(imported, network, images)


def assert_logits(imported, network, images):
  # Without the softmax, which forgets a constant of them.
  before = keras.Model(network.inputs[0], network.layers[-1].input)
  kernel, bias = map(np.asarray, network.layers[-1].get_weights())
  with jax.numpy_rank_promotion('allow'):  # its Dense adds biases so
    wanted = np.asarray(before(images, training=False)) @ kernel + bias
  assert wanted.std() > 0.01  # the images' classes differ
  logits = our_logits(imported, images)
  np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_a_network_of_gray_images(tmp_path):
  network, path = build(lambda: marvin(1)), tmp_path / 'gray.weights.h5'
  network.save_weights(path)
  imported = keras_files.read(path, MARVIN)
  assert imported.data['channels'] == len(imported.mean) == 1
  assert imported_run.make_config(imported).data.std_rgb == (255.0,)
  assert_logits(imported, network, random_images(28)[..., :1])
  with pytest.raises(UserError, match=r'mean: expected one level.*gray'):
    keras_files.read(path, Options('marvin', mean=(1, 2, 3)))


def in_two_parts():
  trunk, top = keras.Sequential(marvin()[:6]), keras.Sequential(marvin()[6:])
  return keras.Sequential([keras.Input((28, 28, 3)), trunk, top])


@pytest.mark.parametrize(
  'make',
  [
    lambda: keras.Sequential([keras.Input((28, 28, 3)), build(marvin)]),
    in_two_parts,
  ],
)
def test_models_of_other_forms(make, saved, tmp_path):
  """Their layers lie elsewhere in the file."""
  network, path = saved()
  other = make()
  with jax.numpy_rank_promotion('allow'):  # its Dense adds biases so
    other(np.zeros((1, 28, 28, 3), np.float32))
  weights = [w for w in other.weights if 'seed' not in w.path]
  theirs = [w for w in network.weights if 'seed' not in w.path]
  shapes = {w.shape: w for w in theirs if len(w.shape) > 1}
  assert len(weights) == len(theirs)
  for weight in weights:
    if len(weight.shape) > 1:
      weight.assign(shapes[weight.shape])
  other.save_weights(tmp_path / 'other.weights.h5')
  found = keras_files.read(tmp_path / 'other.weights.h5', MARVIN).params
  expected = keras_files.read(path, MARVIN).params
  for layer in expected:
    np.testing.assert_array_equal(
      found[layer]['kernel'], expected[layer]['kernel']
    )


def test_a_file_that_is_cut_is_refused(saved, tmp_path):
  _, path = saved()
  whole, bad = path.read_bytes(), tmp_path / 'bad.weights.h5'
  for size in (0, 8, 100, *range(1000, len(whole), len(whole) // 10)):
    bad.write_bytes(whole[:size])
    with pytest.raises(UserError, match=r'bad\.weights\.h5'):
      keras_files.read(bad, MARVIN)


def replace(name, array):
  def change(file):
    del file[f'layers/{name}']
    file[f'layers/{name}'] = array

  return change


def elsewhere(file):
  """Numbers that are those of another file."""
  Path(file.filename).with_name('other').write_bytes(bytes(128))
  del file['layers/conv2d/vars/1']
  file['layers/conv2d/vars'].create_dataset(
    '1', (32,), 'f4', external=[('other', 0, 128)]
  )


def virtual(file):
  layout = h5py.VirtualLayout((32,), 'f4')
  layout[:] = h5py.VirtualSource('other', 'x', (32,))
  del file['layers/conv2d/vars/1']
  file['layers/conv2d/vars'].create_virtual_dataset('1', layout)


def many(file):
  for i in range(5):
    file.create_dataset(f'layers/x/vars/{i}', (2**18,), 'f4', fillvalue=1)


def texts(file):
  file.create_dataset(
    'layers/x/vars/0', data=['a' * 1000] * 1000, dtype=h5py.string_dtype()
  )


def headless(file):
  for name in ('dense', 'dense_1', 'dense_2'):
    del file[f'layers/{name}']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (replace('conv2d/vars/0', np.zeros((3, 3, 3))), 'MISFIT: expected conv1'),
    (
      lambda file: file.create_dataset('layers/x/vars/0', data=np.zeros(3)),
      'expected nothing, found x',
    ),
    (headless, 'expected dense layers, found conv2d, conv2d_1'),
    (replace('conv2d/vars/1', np.full(32, np.nan, 'f4')), 'conv2d bias: '),
    (replace('conv2d', h5py.ExternalLink('other', '/conv2d')), 'MISFIT'),
    (replace('', h5py.ExternalLink('other', '/')), 'found nothing'),
    (elsewhere, 'has its numbers in another file'),
    (virtual, 'has its numbers in another file'),
    (many, 'larger than the file'),
    (texts, 'expected numbers, found object'),
  ],
)
def test_what_does_not_belong_is_refused(change, message, saved):
  _, path = saved()
  with h5py.File(path, 'r+') as file:
    change(file)
  with pytest.raises(UserError, match=message):
    keras_files.read(path, MARVIN)
