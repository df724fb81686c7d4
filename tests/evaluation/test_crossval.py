import json
import shutil
import signal
import statistics

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.evaluation import crossval
from alexnet_jax.training import loop
from alexnet_jax.training import measure
from tests.system import commands

FOLDS = 3
LENGTH = {'num_steps': 20}


def cross_validate(capsys, recipe, workdir, *more):
  """(exit code, result of --json, errors) of the command in this process."""
  capsys.readouterr()
  code = crossval.main(
    ['--config', str(recipe), '--workdir', str(workdir), '--json']
    + [str(m) for m in more]
  )
  out, err = capsys.readouterr()
  return code, json.loads(out) if out else None, err


@pytest.fixture(scope='module')
def done(tmp_path_factory, small):
  """(recipe, folder) of a cross-validation that nothing disturbed."""
  folder = tmp_path_factory.mktemp('done')
  recipe = commands.write_recipe(folder, **small, **LENGTH)
  arguments = ['--config', str(recipe), '--workdir', str(folder / 'cv')]
  assert crossval.main([*arguments, '--folds', str(FOLDS)]) == 0
  return recipe, folder / 'cv'


@pytest.fixture
def copied(done, tmp_path):
  """(recipe, folder, result) of the same, to be changed."""
  shutil.copytree(done[1], tmp_path / 'cv')
  result = json.loads((done[1] / 'crossval.json').read_text())
  return done[0], tmp_path / 'cv', result


@pytest.fixture
def no_training(monkeypatch):
  """Neither trains nor measures."""
  monkeypatch.setattr(loop, 'train_and_evaluate', None)
  monkeypatch.setattr(measure, 'evaluate', None)


def without_places(result):
  """The result without what differs between two folders."""
  folds = [{**fold, 'workdir': ''} for fold in result['folds']]
  return {**result, 'folds': folds}


def test_folds_that_are_done_cost_nothing(done, capsys, no_training):
  code, result, err = cross_validate(capsys, *done, '--folds', FOLDS)
  assert code == 0
  assert 'fold 2 (3 of 3) is done' in err
  assert result == json.loads((done[1] / 'crossval.json').read_text())
  assert [fold['fold'] for fold in result['folds']] == [0, 1, 2]


def test_the_sides_of_every_fold_are_measured(done):
  result = json.loads((done[1] / 'crossval.json').read_text())
  for fold in result['folds']:
    assert fold['train']['examples'] + fold['validation']['examples'] == 30
    assert fold['step'] == 20
    rows = (done[1] / f'fold_0{fold["fold"]}' / 'metrics.jsonl').read_text()
    last = [json.loads(line) for line in rows.splitlines()][-1]
    # What training saw in its last evaluation is what is measured afterwards.
    assert last['eval/loss'] == fold['validation']['loss']
    assert last['eval/macro_f1'] == fold['validation']['macro_f1']
    assert fold['train']['loss'] != fold['validation']['loss']
  losses = [fold['validation']['loss'] for fold in result['folds']]
  assert len(set(losses)) == FOLDS
  assert result['mean']['validation']['loss'] == pytest.approx(np.mean(losses))
  assert result['deviation']['validation']['loss'] == pytest.approx(
    statistics.stdev(losses)
  )


def test_a_fold_is_the_run_that_its_config_describes(done, tmp_path, capsys):
  from alexnet_jax import main

  code = main.main(
    [
      *('--config', str(done[0]), '--workdir', str(tmp_path / 'run'), '--json'),
      *('--config.data.folds=3', '--config.data.fold=1'),
      '--config.report=False',
    ]
  )
  assert code == 0
  result = json.loads(capsys.readouterr().out)
  folds = json.loads((done[1] / 'crossval.json').read_text())['folds']
  assert result['state_digest'] == folds[1]['state_digest']


def test_another_config_is_refused_by_its_keys(done, capsys, no_training):
  code, _, err = cross_validate(
    capsys, *done, '--folds', FOLDS, '--config.optimizer.learning_rate=0.5'
  )
  assert code == 2
  assert 'fold_00 was trained with another config' in err
  assert 'config.optimizer.learning_rate: 0.02 -> 0.5' in err
  code, _, err = cross_validate(capsys, *done, '--folds', 5)
  assert code == 2
  assert 'config.data.folds: 3 -> 5' in err


@pytest.fixture
def in_a_folder(tmp_path, small):
  """(recipe, folder of images, workdir) of a cross-validation of two folds."""
  rng = np.random.default_rng(0)
  for number in range(12):
    path = tmp_path / 'images' / 'ab'[number % 2] / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
  recipe = commands.write_recipe(
    tmp_path,
    **small,
    data__source='folder',
    data__path=str(tmp_path / 'images'),
    data__folds=2,
    num_steps=1,
    global_batch_size=4,
  )
  workdir = tmp_path / 'cv'
  arguments = ['--config', str(recipe), '--workdir', str(workdir)]
  assert crossval.main(arguments) == 0
  return recipe, tmp_path / 'images', workdir


@pytest.mark.slow
def test_folds_that_are_done_on_other_data_are_refused(
  in_a_folder, tmp_path, capsys, no_training
):
  recipe, images, workdir = in_a_folder
  result = (workdir / 'crossval.json').read_text()
  shutil.copy(images / 'a' / '0.png', images / 'a' / 'added.png')
  code, _, err = cross_validate(capsys, recipe, workdir)
  assert code == 2
  assert f'the data of {workdir / "fold_00"} has changed' in err
  assert '  fingerprint: ' in err
  assert (workdir / 'crossval.json').read_text() == result
  # The same images at another place are the same data.
  (images / 'a' / 'added.png').unlink()
  images.rename(tmp_path / 'moved')
  code, moved, _ = cross_validate(
    capsys, recipe, workdir, f'--config.data.path={tmp_path / "moved"}'
  )
  assert code == 0
  assert moved == json.loads(result)


def test_data_that_change_while_a_fold_trains_are_refused(
  in_a_folder, capsys, monkeypatch
):
  recipe, images, workdir = in_a_folder
  (workdir / 'fold_01' / 'measures.json').unlink()
  train = loop.train_and_evaluate

  def changing(*arguments):
    train(*arguments)
    (images / 'b' / '11.png').unlink()

  monkeypatch.setattr(loop, 'train_and_evaluate', changing)
  code, _, err = cross_validate(capsys, recipe, workdir)
  assert code == 2
  assert f'the data of {workdir / "fold_01"} has changed' in err
  assert not (workdir / 'fold_01' / 'measures.json').exists()


def test_what_is_missing_is_made_again(copied, capsys, monkeypatch):
  """One fold lost its measures, another was not begun."""
  recipe, workdir, expected = copied
  (workdir / 'fold_00' / 'measures.json').write_text('{"cut o')
  shutil.rmtree(workdir / 'fold_02')
  trained, train = [], loop.train_and_evaluate

  def spy(config, *arguments):
    trained.append((config.data.fold, config.data.folds, config.report))
    return train(config, *arguments)

  monkeypatch.setattr(loop, 'train_and_evaluate', spy)
  code, result, _ = cross_validate(capsys, recipe, workdir, '--folds', FOLDS)
  assert code == 0
  assert trained == [(0, 3, False), (2, 3, False)]
  assert without_places(result) == without_places(expected)


@pytest.mark.slow
def test_a_longer_run_goes_on_and_is_measured_again(copied, capsys):
  recipe, workdir, _ = copied
  longer = '--config.num_steps=22'
  code, result, _ = cross_validate(
    capsys, recipe, workdir, '--folds', FOLDS, longer
  )
  assert code == 0
  assert [fold['step'] for fold in result['folds']] == [22] * 3
  stored = json.loads((workdir / 'fold_01' / 'measures.json').read_text())
  assert stored['step'] == stored['config']['num_steps'] == 22


@pytest.mark.slow
def test_a_signal_leaves_with_75_and_the_command_goes_on(
  done, tmp_path, capsys, monkeypatch
):
  expected = json.loads((done[1] / 'crossval.json').read_text())
  recipe, workdir = done[0], tmp_path / 'cv'
  evaluate = loop._evaluate

  def signalled(run, live, on_evaluation):
    evaluate(run, live, on_evaluation)
    if run.config.data.fold == 1:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop, '_evaluate', signalled)
    code, _, err = cross_validate(capsys, recipe, workdir, '--folds', FOLDS)
  assert code == 75
  assert 'saved step' in err
  assert not (workdir / 'fold_02').exists()
  code, result, err = cross_validate(capsys, recipe, workdir, '--folds', FOLDS)
  assert code == 0
  assert 'goes on from checkpoint' in err
  assert without_places(result) == without_places(expected)


def test_the_box_plots_show_the_folds(done):
  assert (done[1] / 'box_plots.png').stat().st_size > 10_000
  result = json.loads((done[1] / 'crossval.json').read_text())
  # Values that tell the folds and the sides apart.
  for number, fold in enumerate(result['folds']):
    fold['train'] |= {'top1': 0.9 + number / 100, 'macro_precision': 0.8}
    fold['validation'] |= {'top1': 0.5 - number / 10, 'macro_precision': 0.25}
  for axes, title, wanted in zip(
    crossval.draw_box_plots(result).axes,
    ('top-1', 'macro precision'),
    ([[0.9, 0.91, 0.92], [0.5, 0.4, 0.3]], [[0.8] * 3, [0.25] * 3]),
    strict=True,
  ):
    assert axes.get_title() == title
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ['training', 'held out']
    dots = [line for line in axes.lines if line.get_marker() == 'o']
    assert [list(line.get_ydata()) for line in dots] == wanted
    for position, line in enumerate(dots, 1):  # beside one another
      assert len(set(line.get_xdata())) == FOLDS
      assert line.get_xdata() == pytest.approx([position] * FOLDS, abs=0.1)
    medians = [line for line in axes.lines if line.get_color() == 'C1']
    assert [set(line.get_ydata()) for line in medians] == [
      {statistics.median(values)} for values in wanted
    ]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--folds', '1'], 'must be at least 2'),
    (['--folds', '0'], 'must be at least 2'),
    (['--config.data.folds=4', '--folds', '3'], 'give one of them'),
    (['--config.nothing=4'], 'no key config.nothing'),
    (['--folds', '12'], "class 'band_0' has 10 examples, fewer than"),
  ],
)
def test_it_refuses(tmp_path, small, capsys, arguments, message):
  recipe = commands.write_recipe(tmp_path, **small, **LENGTH)
  code, _, err = cross_validate(capsys, recipe, tmp_path / 'cv', *arguments)
  assert code == 2
  assert message in err
