"""Weights of networks as one writes them in Keras, in its own files."""

import os
import zipfile

import jax
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.interop import keras_files
from alexnet_jax.models import variants
from tests.some_slow import some_slow

os.environ.setdefault('KERAS_BACKEND', 'jax')
keras = pytest.importorskip('keras')
h5py = pytest.importorskip('h5py')
layers = keras.layers

pytestmark = [
  pytest.mark.interop,
  # Of Keras' own variables, which numpy 2 asks whether they copy.
  pytest.mark.filterwarnings('ignore:__array__:DeprecationWarning'),
]

CLASSES = 7
NARROW, HIDDEN = (16, 32, 48, 48, 32), (64, 48)
KERNELS = (11, 5, 3, 3, 3)
DENSE = ('dense', 'dense_1', 'dense_2')  # of marvin


def norm_first():
  """Batch norm before the ReLU of the first two convolutions."""
  out = [keras.Input((224, 224, 3))]
  for number, (units, kernel) in enumerate(zip(NARROW, KERNELS, strict=True)):
    strides = 1 if number else 4
    if number < 2:
      out += [
        layers.Conv2D(units, kernel, strides, padding='same'),
        *(layers.BatchNormalization(), layers.Activation('relu')),
      ]
    else:
      out.append(
        layers.Conv2D(units, kernel, padding='same', activation='relu')
      )
    out += [layers.MaxPooling2D(3, 2)] if number in (0, 1, 4) else []
  return out + head()


def norm_everywhere():
  """Batch norm after the ReLU of every convolution."""
  out = [keras.Input((224, 224, 3))]
  for number, (units, kernel) in enumerate(zip(NARROW, KERNELS, strict=True)):
    strides, padding = (1, 'same') if number else (4, 'valid')
    out += [
      layers.Conv2D(units, kernel, strides, padding, activation='relu'),
      layers.BatchNormalization(),
    ]
    out += [layers.MaxPooling2D(3, 2)] if number in (0, 1, 4) else []
  return out + head()


def head(hidden=HIDDEN):
  out = [layers.Flatten()]
  for units in hidden:
    out += [layers.Dense(units, activation='relu'), layers.Dropout(0.5)]
  return [*out, layers.Dense(CLASSES, activation='softmax')]


def marvin():
  return [
    keras.Input((28, 28, 3)),
    layers.Conv2D(32, 3, activation='relu'),
    layers.MaxPooling2D(2),
    layers.Conv2D(64, 3, activation='relu'),
    layers.MaxPooling2D(2),
    *head((256, 256)),
  ]


NETWORKS = {
  'alexnet_bn': (norm_first, 224),
  'alexnet_bn_all': (norm_everywhere, 224),
  'marvin': (marvin, 28),
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
  """The variants with few channels, as the networks here have."""
  for name in ('alexnet_bn', 'alexnet_bn_all'):
    fields = {**variants.VARIANTS[name], 'channels': NARROW, 'hidden': HIDDEN}
    monkeypatch.setitem(variants.VARIANTS, name, fields)


def build(make, seed=0):
  """A Keras network with random weights, statistics and all."""
  network = keras.Sequential(make())
  rng = np.random.default_rng(seed)
  for weight in network.weights:
    if len(weight.shape) > 1:
      scale = (2 / np.prod(weight.shape[:-1])) ** 0.5
      weight.assign(rng.normal(0, scale, weight.shape))
    elif 'seed' not in weight.path:
      one = weight.name in ('gamma', 'moving_variance')
      draws = rng.normal(0, 0.2, weight.shape)
      weight.assign(1 + np.abs(draws) if one else draws)
  return network


def outputs(network, images):
  """Of a Keras network, whose Dense adds biases of lower rank."""
  with jax.numpy_rank_promotion('allow'):
    return np.asarray(network(images, training=False))


@pytest.fixture
def saved(tmp_path):
  """Writes a network with Keras itself."""

  def save(make=marvin, name='keras.weights.h5'):
    network = build(make)
    path = tmp_path / name
    network.save_weights(path)
    return network, path

  return save


@pytest.mark.parametrize(
  'name', some_slow(NETWORKS, [n for n in NETWORKS if n != 'alexnet_bn'])
)
def test_probabilities_are_those_of_keras(
  name, saved, random_images, our_logits
):
  make, size = NETWORKS[name]
  network, path = saved(make)
  images = random_images(size)
  imported = keras_files.read(path, name)
  assert imported.num_classes == CLASSES
  assert imported.data['crop_size'] == size
  wanted = outputs(network, images)
  assert wanted.std() > 0.01  # the images' classes differ
  logits = our_logits(imported, images)
  exponentials = np.exp(logits - logits.max(-1, keepdims=True))
  actual = exponentials / exponentials.sum(-1, keepdims=True)
  np.testing.assert_allclose(actual, wanted, atol=1e-5)
  # The logits, which the softmax forgets a constant of.
  before = keras.Model(network.inputs[0], network.layers[-1].input)
  kernel, bias = map(np.asarray, network.layers[-1].get_weights())
  np.testing.assert_allclose(
    logits, outputs(before, images) @ kernel + bias, atol=1e-4
  )


def test_layers_are_in_the_order_of_their_numbers(saved):
  """As Keras counts on within a process: conv2d_9 is before conv2d_10."""
  make, _ = NETWORKS['alexnet_bn']
  _, path = saved(make)
  with h5py.File(path, 'r+') as file:
    file.move('layers/conv2d', 'layers/conv2d_5')
    for number in range(1, 5):
      file.move(f'layers/conv2d_{number}', f'layers/conv2d_{number + 9}')
    file.move('layers/conv2d_5', 'layers/conv2d_9')
  imported = keras_files.read(path, 'alexnet_bn')
  with h5py.File(path) as file:
    for number in range(5):
      np.testing.assert_array_equal(
        imported.params[f'conv{number + 1}']['kernel'],
        file[f'layers/conv2d_{number + 9}/vars/0'],
      )


def test_what_pixels_become(saved, caplog):
  _, path = saved()
  assert keras_files.read(path, 'marvin').data['std_rgb'] == (255.0,) * 3
  assert 'taken are --mean 0,0,0 and --std 255,255,255: give' in caplog.text
  caplog.clear()
  imported = keras_files.read(
    path, 'marvin', mean=(1, 2, 3), std=(50, 60, 70), crop_size=28
  )
  assert imported.data['std_rgb'] == (50, 60, 70)
  np.testing.assert_array_equal(imported.mean, [1, 2, 3])
  assert caplog.text == ''


def test_another_network_is_refused_with_both(saved):
  _, path = saved()
  with pytest.raises(UserError, match='MISFIT: expected conv1') as caught:
    keras_files.read(path, 'alexnet_bn')
  assert 'keras.weights.h5' in str(caught.value)
  assert 'expected norm1' in str(caught.value)


def test_the_other_files_of_keras_are_refused(saved, tmp_path):
  network, _ = saved()
  network.save(tmp_path / 'whole.keras')
  assert zipfile.is_zipfile(tmp_path / 'whole.keras')
  with pytest.raises(UserError, match=r'found a zip, as a \.keras file is'):
    keras_files.read(tmp_path / 'whole.keras', 'marvin')
  network.save(tmp_path / 'old.h5')
  with pytest.raises(UserError, match='older format of Keras 2'):
    keras_files.read(tmp_path / 'old.h5', 'marvin')


def test_truncated_at_any_place(saved, tmp_path):
  _, path = saved()
  whole = path.read_bytes()
  cut = tmp_path / 'cut.weights.h5'
  for size in (0, 4, 8, 100, *range(1000, len(whole), len(whole) // 20)):
    cut.write_bytes(whole[:size])
    with pytest.raises(UserError) as caught:
      keras_files.read(cut, 'marvin')
    assert 'cut.weights.h5' in str(caught.value)


def test_tampered_anywhere(saved, tmp_path):
  """Either the numbers change or it is refused; nothing else is raised."""
  _, path = saved()
  assert keras_files.read(path, 'marvin').num_classes == CLASSES
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  bad = tmp_path / 'bad.weights.h5'
  refused = 0
  for _ in range(200):
    content = bytearray(whole)
    for place in rng.integers(0, min(len(content), 12_000), 20):
      content[place] = rng.integers(256)
    bad.write_bytes(content)
    try:
      keras_files.read(bad, 'marvin')
    except UserError:
      refused += 1
  assert 20 < refused < 200


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda file: replace(file, 'layers/conv2d/vars/0', np.zeros((3, 3, 3))),
      'MISFIT: expected conv1',
    ),
    (
      lambda file: file.create_dataset('layers/x/vars/0', data=np.zeros(3)),
      'expected nothing, found x',
    ),
    (
      lambda file: [file.__delitem__(f'layers/{name}') for name in DENSE],
      'expected Dense layers',
    ),
    (
      lambda file: file.__delitem__('layers'),
      "expected the group 'layers'",
    ),
    (
      lambda file: replace(
        file, 'layers/conv2d/vars/1', np.full(32, np.nan, np.float32)
      ),
      'conv2d bias: ',
    ),
    (
      lambda file: replace(file, 'layers/conv2d/vars/1', np.full(32, b'x')),
      'conv2d bias: ',
    ),
    (
      lambda file: link(file, h5py.SoftLink('/layers/dense')),
      'is a link to elsewhere',
    ),
    (
      lambda file: link(file, h5py.ExternalLink('/etc/passwd', 'x')),
      'is a link to elsewhere',
    ),
    (
      lambda file: file.create_dataset(
        'layers/conv2d/vars/2', (10**6, 10**6), 'f4', compression='gzip'
      ),
      'larger than the file',
    ),
    (
      lambda file: [
        file.create_dataset(f'layers/x/vars/{i}', (2**18,), 'f4', fillvalue=1)
        for i in range(5)
      ],
      'larger than the file',
    ),
    (
      lambda file: file.create_dataset(
        'layers/x/vars/0', data=['a' * 1000] * 1000, dtype=h5py.string_dtype()
      ),
      'expected numbers, found object',
    ),
    (
      lambda file: [
        link(file, file['layers/conv2d_1/vars/0'], f'again{i}')
        for i in range(1000)
      ],
      'is a second name of what has one already',
    ),
    (
      lambda file: doubled(file, 60),
      'is a second name of what has one already',
    ),
    (
      lambda file: link(file, file['layers']),
      'is a second name of what has one already',
    ),
  ],
)
def test_what_does_not_belong_is_refused(change, message, saved):
  _, path = saved()
  with h5py.File(path, 'r+') as file:
    change(file)
  with pytest.raises(UserError, match=message):
    keras_files.read(path, 'marvin')


def replace(file, name, array):
  del file[name]
  file[name] = array


def link(file, target, name='elsewhere'):
  file[f'layers/{name}'] = target


def doubled(file, depth):
  """Groups that hold the next one twice: 2^depth ways to the last."""
  group = file.create_group('layers/deep')
  for _ in range(depth):
    group['a'] = inner = group.create_group('b')
    group = inner
  group['numbers'] = np.zeros(3, np.float32)


def test_negative_variances_are_refused(saved):
  make, _ = NETWORKS['alexnet_bn']
  _, path = saved(make)
  with h5py.File(path, 'r+') as file:
    file['layers/batch_normalization/vars/3'][3] = -0.5
  with pytest.raises(UserError, match='found negative numbers'):
    keras_files.read(path, 'alexnet_bn')
