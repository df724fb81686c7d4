"""A network of gray images, from training to what it is exported to."""

import numpy as np
import PIL.Image
import pytest

import alexnet_jax
from alexnet_jax.data import splits
from alexnet_jax.evaluation import report
from alexnet_jax.interop import export, load, program_loader, save
from alexnet_jax.training import build
from tests.data.pictures import encode, noise
from tests.system import commands

PHOTO = noise(99, 28, 28)
GRAY = np.asarray(PIL.Image.fromarray(PHOTO).convert('L'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of a run on images with colors."""
  folder = tmp_path_factory.mktemp('gray')
  steps = {'num_steps': 4, 'eval_every_steps': 2}
  recipe = commands.write_recipe(
    folder, data__channels=1, data__mean='image', **steps
  )
  commands.train_here(recipe, folder / 'run')
  return folder / 'run'


def assert_predicts_as(run, *others):
  (expected,) = run.predict([GRAY])
  for answer in others:
    assert answer == [
      (name, pytest.approx(p, rel=1e-5)) for name, p in expected
    ]


def test_a_photograph_is_predicted_as_its_gray_image(trained, caplog):
  splits.warn_once.cache_clear()
  run = alexnet_jax.open_run(trained)
  assert_predicts_as(run, *run.predict([PHOTO, GRAY[..., None], PHOTO]))
  assert caplog.text.count('the images: images with colors become gray') == 1


def test_weights_go_out_and_come_back(trained, tmp_path):
  run, path = alexnet_jax.open_run(trained), tmp_path / 'x.safetensors'
  assert save.main(['--workdir', str(trained), str(path)]) == 0
  assert load.main([str(path), '--workdir', str(tmp_path / 'run')]) == 0
  loaded = alexnet_jax.open_run(tmp_path / 'run')
  assert loaded.config.data.channels == 1
  assert_predicts_as(run, *loaded.predict([PHOTO]))


def test_an_exported_program_reads_gray_images(trained, tmp_path):
  out, path = tmp_path / 'program', tmp_path / 'photo.png'
  assert export.main(['--workdir', str(trained), str(out)]) == 0
  program = program_loader.load(out)
  path.write_bytes(encode(PHOTO, 'PNG'))
  pixels = program.prepare(str(path))
  np.testing.assert_array_equal(pixels, GRAY[2:-2, 2:-2, None])
  (row,) = program.probabilities(pixels[None])
  answer = [(program.class_names[i], row[i]) for i in np.argsort(-row)]
  assert_predicts_as(alexnet_jax.open_run(trained), answer)


def test_the_report_shows_gray_images_without_colors(trained):
  """What layers see, too."""
  result = report.write(str(trained), extras=('paper', 'visualize'))
  rows = result['visualize']['layers']['conv1']
  assert any(row['values'] for row in rows)
  folder = trained / 'report'
  for name in ('filters', 'predictions', 'augmentation', 'conv1'):
    assert (folder / f'{name}.png').exists()
  # Bars and frames have colors: of the first image's middle none has.
  for name in ('figure_4_left', 'occlusion'):
    picture = np.asarray(PIL.Image.open(folder / f'{name}.png').convert('RGB'))
    row, column = (n // 8 for n in picture.shape[:2])
    part = picture[row - 10 : row + 10, column - 10 : column + 10]
    assert part.max() < 255  # it is not the page's white
    assert np.ptp(part, axis=2).max() == 0


def test_marvin_has_the_parameters_of_its_notebook():
  config = alexnet_jax.load_config('marvin')
  assert build.network_costs(config, 10)['parameters'] == 497_034
