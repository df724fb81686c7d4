import types

import jax
import numpy as np
import pytest
from sklearn.utils import class_weight

from alexnet_jax import config as config_lib, validation
from alexnet_jax.data import augment, pixel_statistics, sources
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.errors import UserError
from alexnet_jax.training import build, parallel
from tests.system import commands


def make_config(tmp_path, **changes):
  recipe = commands.write_recipe(tmp_path, **changes)
  return validation.load_config([f'--config={recipe}'])


def find(config, folder, **options):
  """The pixel statistics of a run in `folder`."""
  loader = build.make_loader(config, 'train')
  return build.find_pixel_statistics(config, loader, folder, **options)


def squares_of(config):
  loader = build.make_loader(config, 'train')
  examples = range(loader.source.num_examples)
  return np.stack([loader.square(index)[0] for index in examples])


def assert_lighting(found, squares):
  covariance = np.cov(squares.reshape(-1, 3).T, bias=True)
  expected = augment.lighting_matrix(covariance, 0.1, 'eigenvalue')
  np.testing.assert_allclose(found, expected, 1e-4, 1e-9)


def test_the_keys_of_an_augmentation_reach_the_batch(tmp_path):
  def first_batch(**changes):
    config = make_config(tmp_path, **changes)
    loader, mesh = build.make_loader(config, 'train'), parallel.make_mesh()
    return next(build.make_train_iter(config, loader, 1, mesh))

  assert 'brightness' not in first_batch()
  bright = first_batch(data__brightness=0.2, data__random_flip=False)
  assert np.ptp(bright['brightness']) > 0
  assert 'flip' not in bright


@pytest.fixture
def no_pass(monkeypatch):
  """Lets a pass over the data fail, once it is called."""
  return lambda: monkeypatch.setattr(pixel_statistics, 'compute', None)


def test_the_mean_is_computed_once_and_kept(tmp_path, monkeypatch):
  config = make_config(tmp_path)
  first = find(config, tmp_path).mean
  expected = squares_of(config).mean((0, 1, 2))
  np.testing.assert_allclose(first, expected, rtol=1e-6)
  assert first.dtype == np.float32
  with monkeypatch.context() as patch:
    patch.setattr(pixel_statistics, 'compute', None)
    np.testing.assert_array_equal(find(config, tmp_path).mean, first)
  np.testing.assert_array_equal(build.stored_mean(config, tmp_path), first)
  (tmp_path / pixel_statistics.MEAN_FILE).write_bytes(b'')  # damaged
  with pytest.raises(UserError, match=r'pixel_mean\.npz'):
    build.stored_mean(config, tmp_path)
  np.testing.assert_array_equal(find(config, tmp_path).mean, first)
  config.data.synthetic_examples = 48  # other data
  assert (find(config, tmp_path).mean != first).any()


@pytest.mark.parametrize('mean', ['image', 'channel', 'none'])
def test_fine_tuning_subtracts_the_channel_means_of_the_other_run(
  tmp_path, mean
):
  other = make_config(tmp_path, data__mean=mean)
  config_lib.write_config(other, tmp_path)
  find(other, tmp_path)
  config = validation.load_config(
    [
      f'--config={commands.ROOT}/configs/finetune.py:{tmp_path}',
      '--config.data.path=x',
    ]
  )
  squares = squares_of(other)
  expected = {
    'image': squares[:, 2:-2, 2:-2].mean((0, 1, 2)),
    'channel': squares.mean((0, 1, 2)),
    'none': [],
  }
  assert config.data.mean == ('none' if mean == 'none' else 'channel')
  np.testing.assert_allclose(config.data.mean_rgb, expected[mean], rtol=1e-6)


def test_a_mean_that_is_given_needs_no_pass(tmp_path, no_pass):
  config = make_config(tmp_path, data__pca_lighting=0.1)
  squares = squares_of(config)
  config.data.mean_rgb = (10.0, 20.0, 30.5)
  (tmp_path / 'colors').mkdir()
  found = find(config, tmp_path / 'colors')
  assert_lighting(found.lighting, squares)  # the colors come from the data
  no_pass()
  config.data.pca_lighting = 0.0
  means = find(config, tmp_path).mean, build.stored_mean(config, tmp_path)
  np.testing.assert_array_equal(means, [np.float32([10, 20, 30.5])] * 2)
  config.data.mean, config.data.mean_rgb = 'none', ()
  assert not find(config, tmp_path).mean.any()
  assert not build.stored_mean(config, tmp_path).any()
  assert not list(tmp_path.glob('*.npz'))


def test_a_part_of_the_mean_is_not_kept(tmp_path):
  config = make_config(tmp_path)
  part = find(config, tmp_path, limit=10).mean
  expected = squares_of(config)[:10].mean((0, 1, 2))
  np.testing.assert_allclose(part, expected, rtol=1e-6)
  assert not list(tmp_path.glob('*.npz'))


def test_a_raw_set_brings_its_size_mean_and_colors(tmp_path, no_pass):
  out = tmp_path / 'raw'
  assert prepare(f'raw --source digits --out {out} --size 28'.split()) == 0
  options = {'data__source': 'raw', 'data__path': str(out)}
  config = make_config(tmp_path, **options, data__resize_size=32)
  with pytest.raises(UserError, match=r'--size 32.*resize_size=28'):
    build.make_loader(config, 'train')
  config = make_config(tmp_path, data__pca_lighting=0.1, **options)
  squares = squares_of(config)
  no_pass()
  found = find(config, tmp_path)
  np.testing.assert_allclose(found.mean, squares.mean((0, 1, 2)), rtol=1e-6)
  assert_lighting(found.lighting, squares)
  lighting = build.stored_lighting(config, tmp_path)
  np.testing.assert_array_equal(lighting, found.lighting)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'global_batch_size': 100}, 'is 100, but there are 96 training'),
    ({'model__num_classes': 5}, 'num_classes is 5, but the data has 4'),
    ({'data__synthetic_classes': 1}, 'has one class'),
    (
      {'loss__class_weights': (1.0, 2.0)},
      'has 2 numbers, but the data has 4 cla',
    ),
  ],
)
def test_data_that_do_not_fit_are_refused(tmp_path, changes, message):
  config = make_config(tmp_path, **{'global_batch_size': 96, **changes})
  splits = [build.make_source(config, s) for s in ('train', 'validation')]
  with pytest.raises(UserError, match=message):
    build.check_examples(config, *splits)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data__crop_size': 5}, 'less than the pooling window'),
    ({'model__hidden': (2**16,) * 9}, 'the state of this network has .* GB'),
    ({'model__width_multiplier': 1e30}, 'config.model: .* too large'),
  ],
)
def test_a_network_that_cannot_be_made_is_refused(tmp_path, changes, message):
  config = make_config(tmp_path, **changes)
  with pytest.raises(UserError, match=message):
    build.state_shapes(config, 4)


def weights_of(tmp_path, weights, labels):
  config = make_config(tmp_path, loss__class_weights=weights)
  labels = np.array(labels, np.int32)
  source = sources.ArraySource('toys', np.zeros(len(labels)), labels, 'abc')
  return build.with_class_weights(config, source).loss.class_weights


def test_balanced_class_weights_are_those_of_scikit_learn(tmp_path):
  labels = [0, 2, 2, 1, 2, 2, 1]
  expected = class_weight.compute_class_weight(
    'balanced', classes=np.arange(3), y=labels
  )
  weights = weights_of(tmp_path, ('balanced',), labels)
  assert weights == pytest.approx(tuple(expected))
  assert weights_of(tmp_path, (1.0, 2.0, 3.0), labels) == (1.0, 2.0, 3.0)
  assert weights_of(tmp_path, (), labels) == ()


def test_balanced_class_weights_need_every_class(tmp_path):
  with pytest.raises(UserError, match="toys has no 'b'"):
    weights_of(tmp_path, ('balanced',), [0, 2, 2])


@pytest.mark.parametrize(
  ('microbatch_size', 'size'), [(0, 32), (3, 12), (100, 32)]
)
def test_evaluation_batches_are_no_larger_than_a_device_computes(
  tmp_path, microbatch_size, size
):
  """Four devices share them evenly."""
  config = make_config(
    tmp_path, global_batch_size=30, microbatch_size=microbatch_size
  )
  mesh = parallel.make_mesh()
  loader = build.make_loader(config, 'validation')
  batches = build.make_eval_iter(config, loader, mesh)
  assert {len(batch['label']) for batch in batches} == {size}
  assert build.eval_batch_size(config, mesh) == size


def test_dropout_has_one_generator_whatever_is_the_default(tmp_path):
  config = make_config(tmp_path)
  key = build.dropout_key(config)
  assert (key.shape, key.dtype) == ((2,), np.uint32)
  with jax.default_prng_impl('rbg'):
    np.testing.assert_array_equal(build.dropout_key(config), key)
  config.seed = 1
  assert (build.dropout_key(config) != key).any()


@pytest.mark.parametrize(
  ('dtype', 'peak'), [('float32', 62.5e12), ('bfloat16', 125e12)]
)
def test_the_utilization_of_two_gpus_by_hand(tmp_path, dtype, peak):
  config = make_config(tmp_path, model__dtype=dtype)
  gpu = types.SimpleNamespace(device_kind='NVIDIA A10')
  mesh = types.SimpleNamespace(devices=np.array([gpu, gpu]), size=2)
  macs = [24 * 24 * 27 * 8, 11 * 11 * 72 * 8, 5 * 5 * 8 * 16, 16 * 4]
  flops = 6 * sum(macs) - 2 * macs[0]  # none for the gradient of the image
  found = build.mfu_per_image(config, 4, mesh)
  assert found == pytest.approx(flops / (2 * peak))
  assert build.mfu_per_image(config, 4, parallel.make_mesh()) is None
  config.init.freeze = ('conv1',)  # its gradients cost nothing
  assert build.mfu_per_image(config, 4, mesh) is None
