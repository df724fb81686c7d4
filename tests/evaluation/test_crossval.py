import json
import shutil

import numpy as np
import pytest

from alexnet_jax.evaluation import crossval
from alexnet_jax.training import loop
from tests.system import commands


@pytest.fixture(scope='module')
def done(tmp_path_factory, small):
  """(recipe, folder) of a cross-validation that nothing disturbed."""
  folder = tmp_path_factory.mktemp('done')
  recipe = commands.write_recipe(folder, **small, num_steps=20)
  arguments = ['--config', str(recipe), '--workdir', str(folder / 'cv')]
  assert crossval.main([*arguments, '--folds', '3']) == 0
  return recipe, folder / 'cv'


@pytest.fixture
def result(done):
  return json.loads((done[1] / 'crossval.json').read_text())


@pytest.fixture
def cross_validate(call, done):
  """(exit code, result, errors) of the command."""
  return lambda workdir, *more: call(
    crossval, '--config', done[0], '--workdir', workdir, *more
  )


def test_the_sides_of_every_fold_are_measured(done, result):
  for fold in result['folds']:
    assert fold['train']['examples'] + fold['validation']['examples'] == 30
    assert fold['step'] == 20
    rows = (done[1] / f'fold_0{fold["fold"]}' / 'metrics.jsonl').read_text()
    last = json.loads(rows.splitlines()[-1])
    # What training saw in its last evaluation is what is measured afterwards.
    assert last['eval/loss'] == fold['validation']['loss']
    assert last['eval/macro_f1'] == fold['validation']['macro_f1']
    assert fold['train']['loss'] != fold['validation']['loss']
  losses = [fold['validation']['loss'] for fold in result['folds']]
  assert len(set(losses)) == 3
  mean, deviation = (
    result[name]['validation']['loss'] for name in ('mean', 'deviation')
  )
  assert mean == pytest.approx(np.mean(losses))
  assert deviation == pytest.approx(np.std(losses, ddof=1))


def test_a_fold_is_the_run_that_its_config_describes(done, result, tmp_path):
  own = '--config.data.folds=3', '--config.data.fold=1'
  trained = commands.train_here(done[0], tmp_path / 'run', *own)
  assert trained['state_digest'] == result['folds'][1]['state_digest']


def test_folds_of_other_data_are_refused(
  images, tmp_path, cross_validate, monkeypatch
):
  """Data that changed after a fold was done, and while one was trained."""
  own = [tmp_path / 'cv', '--config.data.folds=2', '--config.num_steps=1']
  own += ['--config.data.source=folder', f'--config.data.path={images}']
  _, result, _ = cross_validate(*own)
  folds = [tmp_path / 'cv' / f'fold_0{number}' for number in (0, 1)]
  shutil.copy(images / 'a' / '0.png', images / 'a' / 'added.png')
  commands.refused(cross_validate(*own), f'data of {folds[0]} has changed')
  # The same images at another place are the same data.
  (images / 'a' / 'added.png').unlink()
  moved = images.rename(tmp_path / 'moved')
  own.append(f'--config.data.path={moved}')
  assert cross_validate(*own)[:2] == (0, result)
  (folds[1] / 'measures.json').unlink()
  train = loop.train_and_evaluate

  def changing(*arguments):
    train(*arguments)
    (moved / 'b' / '11.png').unlink()

  monkeypatch.setattr(loop, 'train_and_evaluate', changing)
  commands.refused(cross_validate(*own), f'data of {folds[1]} has changed')
  assert not (folds[1] / 'measures.json').exists()


def test_what_is_missing_is_made_again(
  done, result, tmp_path, cross_validate, monkeypatch
):
  """One fold lost its measures, another was not begun."""
  workdir = shutil.copytree(done[1], tmp_path / 'cv')
  (workdir / 'fold_00' / 'measures.json').write_text('{"cut o')
  shutil.rmtree(workdir / 'fold_02')
  trained, train = [], loop.train_and_evaluate

  def spy(config, *arguments):
    trained.append((config.data.fold, config.data.folds, config.report))
    return train(config, *arguments)

  monkeypatch.setattr(loop, 'train_and_evaluate', spy)
  code, again, _ = cross_validate(workdir, '--folds', 3)
  assert code == 0
  assert trained == [(0, 3, False), (2, 3, False)]
  for fold in again['folds']:
    assert fold.pop('workdir').startswith(str(workdir))
  for fold in result['folds']:
    del fold['workdir']
  assert again == result


def test_the_box_plots_show_the_folds(done, result):
  assert (done[1] / 'box_plots.png').stat().st_size > 10_000
  # Values that tell the folds and the sides apart.
  for number, fold in enumerate(result['folds']):
    fold['train'] |= {'top1': 0.9 + number / 100, 'macro_precision': 0.8}
    fold['validation'] |= {'top1': 0.5 - number / 10, 'macro_precision': 0.25}
  wanted = {
    'top-1': [[0.9, 0.91, 0.92], [0.5, 0.4, 0.3]],
    'macro precision': [[0.8] * 3, [0.25] * 3],
  }
  for axes in crossval.draw_box_plots(result).axes:
    values = wanted.pop(axes.get_title())
    dots = [line for line in axes.lines if line.get_marker() == 'o']
    assert [list(line.get_ydata()) for line in dots] == values


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('--folds 1', 'must be at least 2'),
    ('--config.data.folds=4 --folds 3', 'give one of them'),
    ('--config.nothing=4', 'no key config.nothing'),
    ('--folds 12', "folds = 12 examples: 'band_0' (10), 'band_1"),
  ],
)
def test_it_refuses(tmp_path, cross_validate, arguments, message):
  answer = cross_validate(tmp_path / 'cv', *arguments.split())
  commands.refused(answer, message)
