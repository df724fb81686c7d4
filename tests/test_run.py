"""The package as a library."""

from collections import abc
import functools
import inspect
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import alexnet_jax
from alexnet_jax import data
from alexnet_jax.errors import UserError
from alexnet_jax.training import state as state_lib
from tests.data.pictures import encode, noise
from tests.system import commands


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(recipe, folder of a run, what training returned, its evaluations)."""
  folder, seen = tmp_path_factory.mktemp('api'), []
  recipe = commands.write_recipe(folder, num_steps=12, eval_every_steps=4)
  config = alexnet_jax.load_config(str(recipe), {'optimizer.nesterov': True})
  result = alexnet_jax.train(
    config, folder / 'run', on_evaluation=lambda step, values: seen.append(step)
  )
  return recipe, folder / 'run', result, seen


def test_steps_are_told_and_their_errors_end_the_run(trained, tmp_path):
  """The run saved every so often meanwhile, and goes on as if nothing was."""
  recipe, workdir, result, seen = trained
  assert seen == [4, 8, 12]
  often = {'save_every_minutes': 1e-6, 'checkpoint.keep': 99}
  overrides = {'optimizer.nesterov': True, **often}
  config, told = alexnet_jax.load_config(str(recipe), overrides), []

  def on_step(step, values):
    told.append((step, values))
    if step == 5 and len(told) == 5:
      raise UserError('enough')

  with pytest.raises(UserError, match='enough'):
    alexnet_jax.train(config, tmp_path, on_step)
  saved = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert saved == {str(step) for step in range(1, 6)}
  again = alexnet_jax.train(config, tmp_path, on_step=on_step)
  assert again['state_digest'] == result['state_digest']
  assert [step for step, _ in told] == [*range(1, 13)]
  assert all(type(value) is float for value in told[0][1].values())
  losses = [
    loss
    for row in alexnet_jax.open_run(workdir).history()
    for loss in row.get('train/step_losses', ())
  ]
  wanted = [losses[step - 1] for step, _ in told]
  assert [row['train/loss'] for _, row in told] == pytest.approx(wanted)


def test_a_run_tells_what_it_is(trained):
  _, workdir, result, _ = trained
  run = alexnet_jax.open_run(workdir)
  assert (run.step, len(run.class_names)) == (12, 4)
  assert run.config.optimizer.nesterov
  assert run.metrics['eval/top1'] == result['eval/top1']
  assert run.history()[-1]['step'] == 12
  assert run.evaluate()['eval/loss'] == pytest.approx(result['eval/loss'])
  assert alexnet_jax.open_run(workdir, 8).step == 8


def approx(answer):
  return [(name, pytest.approx(p, rel=1e-5)) for name, p in answer]


def test_images_of_all_kinds_are_predicted_alike(trained, tmp_path):
  run = alexnet_jax.open_run(trained[1], top=2)
  pixels, path = noise(0), tmp_path / 'a.png'
  image, content = PIL.Image.fromarray(pixels), encode(pixels, 'PNG')
  path.write_bytes(content)
  gray = np.array(image.convert('L'))
  same = path, str(path), content, image, pixels
  answers = run.predict([*same, gray, image.convert('L')])
  assert [len(answer) for answer in answers] == [2] * 7
  # The place in the batch may change the last bits.
  for one, other in ((0, 1), (0, 2), (0, 3), (0, 4), (5, 6)):
    assert answers[one] == approx(answers[other])
  assert answers[5] != approx(answers[0])
  (alone,) = run.predict(pixels[None])
  assert alone == approx(answers[0])
  turned = PIL.Image.fromarray(pixels)
  turned.getexif()[0x0112] = 6
  by_hand = run.predict([np.rot90(pixels, -1), turned])
  assert by_hand[0] == approx(by_hand[1])


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    ('a.png', 'give a list of images'),
    ([], 'give a list'),
    ([b'x', np.zeros((8, 8), np.uint8)], 'cannot decode image 0'),
    ([np.zeros((8, 8, 4), np.uint8)], 'image 0 is uint8 .* 4.*, not uint8'),
    ([np.zeros((8, 8, 3))], r'image 0 is float64 \[8, 8, 3\]'),
    (np.zeros((8, 8, 3), np.uint8), 'images is ndarray; give a list'),
    ([None], 'image 0 is a NoneType'),
  ],
)
def test_what_is_no_image_is_refused(trained, caplog, images, message):
  run = alexnet_jax.open_run(trained[1])
  features = functools.partial(run.features, layer='head')
  for function in (run.predict, features):
    with pytest.raises(UserError, match=message):
      function(images)
  assert not caplog.records  # such as `skipped`


def test_a_loop_of_ones_own_trains_as_a_run_does(tmp_path):
  keys = {'num_steps': 3, 'schedule.name': 'constant', 'seed': 5}
  keys |= {'schedule.warmup_epochs': 0, 'data.mean_rgb': (9, 8, 7)}
  recipe = commands.write_recipe(tmp_path)
  config = alexnet_jax.load_config(str(recipe), keys)
  result = alexnet_jax.train(config, tmp_path / 'run')
  state, train_step = alexnet_jax.make_train_step(config, 4)
  options = data.BatchOptions(
    batch_size=config.global_batch_size,
    crop_size=config.data.crop_size,
    resize_size=config.data.resize_size,
    flip=config.data.random_flip,
    seed=5,
  )
  sizes = {'synthetic_examples': 96, 'synthetic_classes': 4}
  source = data.make_source('synthetic', 'train', **sizes)
  for batch in data.train_batches(source, options, 3):
    state, sums = train_step(state, batch)
  assert float(sums['count']) == config.global_batch_size
  assert state_lib.summarize(state)['state_digest'] == result['state_digest']
  for key, value, message in (
    ('data.mean_rgb', (), 'mean is .*give 3 levels'),
    ('data.pca_lighting', 0.1, r'data\.pca_lighting'),
    ('loss.class_weights', ('balanced',), 'is balanced; here give'),
    ('init.freeze', ('conv*',), r'config\.init'),
  ):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
      alexnet_jax.make_train_step(changed, 4)


def test_a_name_of_a_recipe_and_its_keys():
  config = alexnet_jax.load_config(
    'compare:flat_alexnet', {'data.path': '/photos', 'model.hidden': (8, 8)}
  )
  assert config.model.hidden == (8, 8)
  with pytest.raises(alexnet_jax.UserError, match='no key'):
    alexnet_jax.load_config('quickstart', {'num_epoch': 1})


BARE = {dict, list, tuple, abc.Callable, abc.Mapping, abc.Sequence}


@pytest.mark.parametrize('module', [alexnet_jax, data])
def test_public_names_have_complete_types(module):
  functions = {name: getattr(module, name) for name in module.__all__}
  for name, kind in functions.copy().items():
    if inspect.isclass(kind):
      methods = {f'{name}.{k}': v for k, v in vars(kind).items() if k[0] != '_'}
      functions |= methods
  for name, function in functions.items():
    if inspect.isfunction(function):
      signature = inspect.signature(function)
      found = {p.name: p.annotation for p in signature.parameters.values()}
      found = {k: v for k, v in found.items() if k != 'self'}
      for kind in (*found.values(), signature.return_annotation):
        assert kind not in {inspect.Parameter.empty, *BARE}, name


def test_the_package_is_imported_without_its_parts():
  program = (
    'import sys, alexnet_jax\n'
    'assert not {"jax", "numpy", "grain"} & set(sys.modules)\n'
    'assert all(getattr(alexnet_jax, name) for name in alexnet_jax.__all__)\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True)
