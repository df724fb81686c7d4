import shutil
import types

import jax
import numpy as np
import pytest
from sklearn.utils import class_weight

from alexnet_jax import config as config_lib, validation
from alexnet_jax.data import augment, pixel_statistics, sources
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.errors import UserError
from alexnet_jax.training import build, parallel, writers
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


def start_other(tmp_path, **changes):
  """(folder, config) of a run with other data that knows their mean."""
  folder = tmp_path / 'other'
  folder.mkdir()
  config = make_config(tmp_path, data__synthetic_examples=30, **changes)
  config_lib.write_config(config, folder)
  find(config, folder)
  return folder, config


@pytest.fixture
def other(tmp_path):
  """(folder, mean image of 24 x 24) of a run with other data."""
  folder, config = start_other(tmp_path, data__mean='image')
  return folder, squares_of(config).mean(0)[2:-2, 2:-2]


def mean_of(folder, tmp_path, **changes):
  """The config of a run that takes the mean image of `folder`."""
  changes |= {'data__mean': 'image', 'init__mean_image': True}
  return make_config(tmp_path, init__workdir=str(folder), **changes)


@pytest.mark.parametrize('pca_lighting', [0.0, 0.1])
def test_the_mean_image_of_the_run_whose_weights_are_taken(
  pca_lighting, other, tmp_path, no_pass
):
  folder, image = other
  config = mean_of(
    folder, tmp_path, data__pca_lighting=pca_lighting, data__resize_size=32
  )
  if not pca_lighting:
    no_pass()
  found = find(config, tmp_path)
  np.testing.assert_allclose(found.mean, image, rtol=1e-6)
  if pca_lighting:  # of the data here
    assert_lighting(found.lighting, squares_of(config))
  shutil.rmtree(folder)  # from now on it is not needed
  again = find(config, tmp_path).mean, build.stored_mean(config, tmp_path)
  np.testing.assert_array_equal(again, [found.mean] * 2)


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    # Its file has an image all the same, of which it takes the average.
    ({'data__mean': 'channel'}, r"data.mean is 'channel' \(needed: image\)"),
    (
      {'data__mean': 'image', 'data__crop_size': 20},
      r'crop_size is 20 \(needed: 24\); with --config.init.mean_image=false',
    ),
    ({'data__mean': 'image'}, r'other/pixel_mean.npz, is missing'),
  ],
)
def test_a_run_without_such_a_mean_image_gives_none(changes, problem, tmp_path):
  folder, _ = start_other(tmp_path, **changes)
  if 'missing' in problem:
    (folder / pixel_statistics.MEAN_FILE).unlink()
  with pytest.raises(UserError, match=problem):
    find(mean_of(folder, tmp_path), tmp_path)


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


def test_colors_that_were_not_kept_are_computed_when_they_are_wanted(tmp_path):
  """A folder may hold a mean alone."""
  config = make_config(tmp_path)
  mean = find(config, tmp_path).mean
  path = tmp_path / pixel_statistics.MEAN_FILE
  with np.load(path) as stored:
    np.savez(path, mean=stored['mean'], of=stored['of'])
  config.data.pca_lighting = 0.1
  with pytest.raises(UserError, match=r'the covariance .* is missing'):
    build.stored_lighting(config, tmp_path)
  found = find(config, tmp_path)
  assert_lighting(found.lighting, squares_of(config))
  np.testing.assert_array_equal(found.mean, mean)
  stored = build.stored_lighting(config, tmp_path)
  np.testing.assert_array_equal(stored, found.lighting)


def test_a_raw_set_brings_its_size_mean_and_colors(other, tmp_path, no_pass):
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
  # Nor where the mean is that of another run.
  config.init.workdir, config.init.mean_image = str(other[0]), True
  config.data.mean = 'image'
  again = find(config, tmp_path)
  np.testing.assert_allclose(again.mean, other[1], rtol=1e-6)
  np.testing.assert_array_equal(again.lighting, found.lighting)


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


def weights_of(tmp_path, weights, labels, names='abc'):
  config = make_config(tmp_path, loss__class_weights=weights)
  labels = np.array(labels, np.int32)
  source = sources.ArraySource('toys', np.zeros(len(labels)), labels, names)
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
  ('scaling', 'lr'), [('none', 0.02), ('linear', 0.08), ('sqrt', 0.04)]
)
def test_the_learning_rate_grows_with_the_batch(tmp_path, scaling, lr):
  config = make_config(
    tmp_path,
    global_batch_size=128,
    optimizer__rate_scaling=scaling,
    optimizer__base_batch_size=256 if scaling == 'none' else 32,
  )
  assert build.learning_rate(config) == pytest.approx(lr, rel=1e-12)


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


def test_the_history_has_the_utilization_where_it_is_known(
  tmp_path, monkeypatch, capsys
):
  """Not while parameters are frozen, whose gradients cost nothing."""
  recipe = commands.write_recipe(
    tmp_path, num_steps=8, log_every_steps=2, init__freeze=('conv1*',)
  )
  until = '--config.init.unfreeze_steps=4'
  monkeypatch.setattr(build, 'mfu_per_image', lambda *_: 1e-3)
  commands.train_here(recipe, tmp_path / 'run', until)
  rows = [row for row in writers.read_rows(tmp_path / 'run') if 'mfu' in row]
  assert [row['step'] for row in rows] == [6, 8]
  for row in rows:
    assert row['mfu'] == pytest.approx(row['images_per_second'] / 1000)
  assert capsys.readouterr().err.count('waiting for data, MFU ') == 2
