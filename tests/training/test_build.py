import shutil

import jax
import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax import validation
from alexnet_jax.data import augment
from alexnet_jax.data import pixel_statistics
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from alexnet_jax.training import schedule
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
  return np.stack(
    [loader.square(i)[0] for i in range(loader.source.num_examples)]
  )


def test_the_mean_is_computed_once_and_kept(tmp_path, monkeypatch):
  config = make_config(tmp_path)
  first = find(config, tmp_path).mean
  squares = squares_of(config)
  np.testing.assert_allclose(first, squares.mean((0, 1, 2)), rtol=1e-6)
  assert first.dtype == np.float32
  # It must not be called.
  monkeypatch.setattr(pixel_statistics, 'compute', None)
  again = find(config, tmp_path).mean
  np.testing.assert_array_equal(again, first)
  stored = build.stored_mean(config, tmp_path)
  np.testing.assert_array_equal(stored, first)


def test_the_mean_of_other_data_is_computed_anew(tmp_path):
  config = make_config(tmp_path)
  first = find(config, tmp_path).mean
  config.data.synthetic_examples = 48
  assert (find(config, tmp_path).mean != first).any()


def test_the_mean_image_loses_its_border(tmp_path):
  config = make_config(tmp_path, data__mean='image')
  mean = find(config, tmp_path).mean
  whole = squares_of(config).mean(0)
  np.testing.assert_allclose(mean, whole[2:-2, 2:-2], rtol=1e-6)


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
  """(folder, mean image of 28 x 28) of a run with other data."""
  folder, config = start_other(tmp_path, data__mean='image')
  return folder, squares_of(config).mean(0)


@pytest.mark.parametrize('pca_lighting', [0.0, 0.1])
def test_the_mean_image_of_the_run_whose_weights_are_taken(
  pca_lighting, other, tmp_path, monkeypatch
):
  folder, image = other
  config = make_config(
    tmp_path,
    data__mean='image',
    data__pca_lighting=pca_lighting,
    init__workdir=str(folder),
    init__mean_image=True,
  )
  if not pca_lighting:  # no pass over the data is needed
    monkeypatch.setattr(pixel_statistics, 'compute', None)
  found = find(config, tmp_path)
  np.testing.assert_allclose(found.mean, image[2:-2, 2:-2], rtol=1e-6)
  if pca_lighting:  # of the data here
    squares = squares_of(config)
    np.testing.assert_allclose(found.lighting, shift_of(squares), 1e-4, 1e-9)
  # From then on the other run may be gone.
  shutil.rmtree(folder)
  again = find(config, tmp_path)
  np.testing.assert_array_equal(again.mean, found.mean)
  stored = build.stored_mean(config, tmp_path)
  np.testing.assert_array_equal(stored, found.mean)


def test_the_mean_image_of_the_data_is_no_longer_used(other, tmp_path):
  """The folder has it already."""
  config = make_config(tmp_path, data__mean='image')
  own = find(config, tmp_path).mean
  config.init.workdir, config.init.mean_image = str(other[0]), True
  assert (find(config, tmp_path).mean != own).any()


def take_mean_of(folder, tmp_path, **changes):
  """Returns the mean of a run that starts with the weights of `folder`."""
  config = make_config(
    tmp_path,
    data__mean='image',
    init__workdir=str(folder),
    init__mean_image=True,
    **changes,
  )
  return find(config, tmp_path).mean


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    # Its file has an image all the same, of which it takes the average.
    ({'data__mean': 'channel'}, "data.mean is 'channel', not image; with"),
    ({'data__mean': 'none'}, "data.mean is 'none', not image; with"),
    (
      {'data__mean': 'image', 'data__crop_size': 20},
      'crop_size is 20, but 24 here; with --config.init.mean_image=false',
    ),
  ],
)
def test_a_run_without_such_a_mean_image_gives_none(changes, problem, tmp_path):
  folder, _ = start_other(tmp_path, **changes)
  with pytest.raises(UserError, match=problem):
    take_mean_of(folder, tmp_path)


def test_a_mean_image_that_is_lost_is_missed(other, tmp_path):
  folder, _ = other
  (folder / pixel_statistics.MEAN_FILE).unlink()
  with pytest.raises(UserError, match=r'other/pixel_mean.npz with the mean'):
    take_mean_of(folder, tmp_path)


def test_squares_of_another_size_do_not_matter(other, tmp_path):
  folder, image = other
  mean = take_mean_of(folder, tmp_path, data__resize_size=32)
  np.testing.assert_allclose(mean, image[2:-2, 2:-2], rtol=1e-6)


def test_no_mean(tmp_path):
  config = make_config(tmp_path, data__mean='none')
  assert not find(config, tmp_path).mean.any()
  assert not build.stored_mean(config, tmp_path).any()
  assert not list(tmp_path.glob('*.npz'))


def test_a_mean_that_is_given_needs_no_pass(tmp_path, monkeypatch):
  config = make_config(tmp_path, data__mean_rgb=(10.0, 20.0, 30.5))
  levels = np.float32([10, 20, 30.5])
  with monkeypatch.context() as patch:
    patch.setattr(pixel_statistics, 'compute', None)  # must not be called
    found = find(config, tmp_path)
  np.testing.assert_array_equal(found.mean, levels)
  stored = build.stored_mean(config, tmp_path)
  np.testing.assert_array_equal(stored, levels)
  assert not list(tmp_path.glob('*.npz'))
  # How the colors vary is the data's own all the same.
  config.data.pca_lighting = 0.1
  found = find(config, tmp_path)
  np.testing.assert_array_equal(found.mean, levels)
  squares = squares_of(config)
  np.testing.assert_allclose(found.lighting, shift_of(squares), 1e-4, 1e-9)


def test_a_part_of_the_mean_is_not_kept(tmp_path):
  config = make_config(tmp_path)
  find(config, tmp_path, limit=10)
  with pytest.raises(
    UserError, match=r'pixel_mean\.npz with the mean.*missing'
  ):
    build.stored_mean(config, tmp_path)


def test_the_number_of_classes_is_that_of_the_data(tmp_path):
  config = make_config(tmp_path)
  assert build.make_model(config, 4).num_classes == 4
  config.model.num_classes = 5
  with pytest.raises(UserError, match='num_classes is 5, but the data has 4'):
    build.make_model(config, 4)


def test_a_network_that_the_crops_do_not_fit_is_a_user_error(tmp_path):
  config = make_config(tmp_path, data__crop_size=5)
  with pytest.raises(UserError, match='less than the pooling window'):
    build.make_state(config, build.make_model(config, 4))


def test_data_that_cannot_be_trained_on_is_refused(tmp_path):
  config = make_config(tmp_path, global_batch_size=96)
  sources = [build.make_source(config, s) for s in ('train', 'validation')]
  build.check_examples(config, *sources)
  config.global_batch_size = 100
  with pytest.raises(UserError, match='is 100, but there are 96 training'):
    build.check_examples(config, *sources)
  config.data.synthetic_classes = 1
  sources = [build.make_source(config, s) for s in ('train', 'validation')]
  with pytest.raises(UserError, match='has one class'):
    build.check_examples(config, *sources)


def test_durations_in_epochs_become_steps(tmp_path):
  config = make_config(
    tmp_path,
    num_epochs=3.0,
    num_steps=0,
    eval_every_epochs=0.5,
    eval_every_steps=0,
    schedule__name='step',
    schedule__warmup_epochs=1.0,
    schedule__drop_epochs=(1.5, 2.0),
  )
  durations = schedule.resolve_durations(config, 100)
  assert durations.steps_per_epoch == 12.5
  assert durations.num_steps == 38  # 37.5
  assert durations.eval_every == 6.25
  assert durations.save_every == 0
  assert durations.warmup_steps == 12
  assert durations.drop_steps == (19, 25)


def test_a_raw_set_of_another_size_is_refused(tmp_path):
  out = tmp_path / 'raw'
  assert prepare(f'raw --source digits --out {out} --size 16'.split()) == 0
  options = {'data__source': 'raw', 'data__path': str(out)}
  fitting = {'data__resize_size': 16, 'data__crop_size': 16}
  config = make_config(tmp_path, **options, **fitting)
  assert build.make_loader(config, 'train').source.num_examples == 4000
  config = make_config(tmp_path, **options)
  with pytest.raises(UserError, match=r'--size 28.*resize_size=16'):
    build.make_loader(config, 'train')


def test_mean_and_colors_of_a_raw_set_need_no_pass(
  other, tmp_path, monkeypatch
):
  out = tmp_path / 'raw'
  assert prepare(f'raw --source digits --out {out} --size 28'.split()) == 0
  config = make_config(
    tmp_path,
    data__source='raw',
    data__path=str(out),
    data__resize_size=28,
    data__pca_lighting=0.1,
  )
  loader = build.make_loader(config, 'train')
  squares = np.concatenate(loader.source.shards)
  # It must not be called.
  monkeypatch.setattr(pixel_statistics, 'compute', None)
  found = find(config, tmp_path)
  np.testing.assert_allclose(found.mean, squares.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(found.lighting, shift_of(squares), 1e-4, 1e-9)
  np.testing.assert_array_equal(
    build.stored_lighting(config, tmp_path), found.lighting
  )
  # Nor where the mean is that of another run.
  config.init.workdir, config.init.mean_image = str(other[0]), True
  config.data.mean = 'image'
  again = find(config, tmp_path)
  np.testing.assert_allclose(again.mean, other[1][2:-2, 2:-2], rtol=1e-6)
  np.testing.assert_array_equal(again.lighting, found.lighting)


def shift_of(squares):
  covariance = np.cov(squares.reshape(-1, 3).T, bias=True)
  return augment.lighting_matrix(covariance, 0.1, 'eigenvalue')


def test_colors_that_were_not_kept_are_computed_when_they_are_wanted(tmp_path):
  """A folder may hold a mean alone."""
  config = make_config(tmp_path)
  mean = find(config, tmp_path).mean
  path = tmp_path / pixel_statistics.MEAN_FILE
  with np.load(path) as stored:
    np.savez(path, mean=stored['mean'], of=stored['of'])
  config.data.pca_lighting = 0.1
  np.testing.assert_array_equal(build.stored_mean(config, tmp_path), mean)
  with pytest.raises(UserError, match=r'the covariance .* is missing'):
    build.stored_lighting(config, tmp_path)
  found = find(config, tmp_path)
  squares = squares_of(config)
  np.testing.assert_allclose(found.lighting, shift_of(squares), 1e-4, 1e-9)
  np.testing.assert_array_equal(found.mean, mean)
  assert build.stored_lighting(config, tmp_path) is not None


@pytest.mark.parametrize(
  ('batch_size', 'scaling', 'lr'),
  [
    (128, 'none', 0.02),
    (128, 'linear', 0.08),
    (128, 'sqrt', 0.04),
    (8, 'linear', 0.005),
    (8, 'sqrt', 0.01),
    (32, 'sqrt', 0.02),
  ],
)
def test_the_learning_rate_grows_with_the_batch(
  tmp_path, batch_size, scaling, lr
):
  config = make_config(
    tmp_path,
    global_batch_size=batch_size,
    optimizer__rate_scaling=scaling,
    optimizer__base_batch_size=256 if scaling == 'none' else 32,
  )
  assert build.learning_rate(config) == pytest.approx(lr, rel=1e-12)
  state = build.make_state(config, build.make_model(config, 4))
  held = state.opt_state.hyperparams['learning_rate']
  assert held == pytest.approx(lr)


def test_evaluation_batches_are_no_larger_than_a_device_computes(tmp_path):
  config = make_config(tmp_path, global_batch_size=30)
  mesh = parallel.make_mesh()
  loader = build.make_loader(config, 'validation')

  def sizes():
    batches = build.make_eval_iter(config, loader, mesh)
    return {len(batch['label']) for batch in batches}

  assert mesh.size == 4
  assert sizes() == {32}  # the devices share it evenly
  config.microbatch_size = 3
  assert sizes() == {12} == {build.eval_batch_size(config, mesh)}
  config.microbatch_size = 100
  assert sizes() == {32}


def test_dropout_has_one_generator_whatever_is_the_default(tmp_path):
  config = make_config(tmp_path)
  key = build.dropout_key(config)
  assert (key.shape, key.dtype) == ((2,), np.uint32)
  with jax.default_prng_impl('rbg'):
    np.testing.assert_array_equal(build.dropout_key(config), key)
  config.seed = 1
  assert (build.dropout_key(config) != key).any()
