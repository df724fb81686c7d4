import csv
import json
import pathlib
import shutil

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from alexnet_jax import main as train_main
from alexnet_jax.evaluation import compare
from alexnet_jax.evaluation import figures
from alexnet_jax.evaluation import run_record
from alexnet_jax.training import writers
from tests import browser
from tests.system import commands

CHANGES = {
  'one': (),
  'other seed': ('--config.seed=1', '--config.log_every_steps=2'),
  'other_data': ('--config.data.synthetic_examples=60',),
}
STEPS = 16


def compare_runs(capsys, *arguments):
  """(exit code, result of --json, errors) of the command in this process."""
  capsys.readouterr()
  code = compare.main([*map(str, arguments), '--json'])
  out, err = capsys.readouterr()
  return code, json.loads(out) if out else None, err


@pytest.fixture(scope='module')
def runs(tmp_path_factory, small):
  """{name: folder of a run}."""
  folder = tmp_path_factory.mktemp('runs')
  recipe = commands.write_recipe(
    folder, **small, num_steps=STEPS, eval_every_steps=5
  )
  for name, changes in CHANGES.items():
    arguments = ['--config', str(recipe), '--workdir', str(folder / name)]
    arguments += ['--config.report=False', *changes]
    assert train_main.main(arguments) == 0
  return {name: folder / name for name in CHANGES}


def test_repetitions_have_a_mean_and_its_error(runs, tmp_path, capsys):
  one, two = runs['one'], runs['other seed']
  out = tmp_path / 'out'
  code, result, err = compare_runs(capsys, '--workdirs', one, two, '--out', out)
  assert code == 0
  assert result['notes'] == []
  (group,) = result['groups']
  assert group['runs'] == ['one', 'other seed']
  assert group['seeds'] == [0, 1]
  losses = [row['loss'] for row in result['runs']]
  assert losses[0] != losses[1]
  assert group['loss']['mean'] == pytest.approx(sum(losses) / 2)
  # Of two numbers the sample deviation is their distance by the root of 2.
  expected = abs(losses[0] - losses[1]) / 2**0.5
  assert group['loss']['deviation'] == pytest.approx(expected)
  assert group['loss']['standard_error'] == pytest.approx(expected / 2**0.5)
  assert 'Mean ± standard error' in err
  dom = browser.open_page(out / 'index.html')
  rows = dom.tables['Mean ± standard error'].rows
  assert rows[1][0].text == 'one, other seed'
  assert f'{sum(losses) / 2:.4f} ± {expected / 2**0.5:.4f}' in [
    cell.text for cell in rows[1]
  ]
  keys = dom.tables['Keys of the config that differ'].rows
  assert [row[0].text for row in keys[1:]] == ['log_every_steps', 'seed']


def test_the_numbers_are_those_of_the_run(runs, tmp_path, capsys):
  _, result, _ = compare_runs(
    capsys, '--workdirs', *runs.values(), '--out', tmp_path / 'out'
  )
  assert [row['name'] for row in result['runs']] == list(CHANGES)
  for row in result['runs']:
    history = writers.read_rows(row['workdir'])
    last = [r for r in history if 'eval/loss' in r][-1]
    for name in run_record.MEASURES:
      assert row[name] == last[f'eval/{name}']
    assert row['steps'] == STEPS
    examples = 60 if row['name'] == 'other_data' else 30
    assert row['epochs'] == STEPS * 8 / examples
    # One convolution of 3 x 3 with stride 2 on 24 pixels, pooled to 5, and
    # dense layers of 8 and 3: multiply-adds by hand.
    conv, dense = 12 * 12 * 9 * 3 * 8, 5 * 5 * 8 * 8 + 8 * 3
    assert row['forward_flops_per_image'] == 2 * (conv + dense)
    assert row['training_flops_per_image'] == 6 * (conv + dense) - 2 * conv
    assert row['parameters'] == 27 * 8 + 8 + 200 * 8 + 8 + 8 * 3 + 3
  names = [pathlib.Path(file).name for file in result['files']]
  assert names == [
    *('table.csv', 'validation.png', 'training_loss.png', 'index.html')
  ]
  for name in names[1:3]:  # not white: lines of as many colors as runs
    picture = matplotlib.image.imread(tmp_path / 'out' / name)[..., :3]
    colors = np.unique(np.round(picture * 255).reshape(-1, 3), axis=0)
    for number in range(len(CHANGES)):
      wanted = 255 * np.array(matplotlib.colors.to_rgb(f'C{number}'))
      assert (np.abs(colors - wanted).max(1) < 2).any()
  with (tmp_path / 'out' / 'table.csv').open() as file:
    table = list(csv.DictReader(file))
  assert [row['name'] for row in table] == list(CHANGES)
  for row, expected in zip(table, result['runs'], strict=True):
    assert float(row['loss']) == expected['loss']
    assert int(row['parameters']) == expected['parameters']


def test_other_data_is_noted_in_table_and_page(runs, tmp_path, capsys):
  out = tmp_path / 'out'
  code, result, err = compare_runs(
    capsys, '--workdirs', *runs.values(), '--out', out
  )
  assert code == 0
  one, again, other = (row['eval_fingerprint'] for row in result['runs'])
  assert one == again != other
  validation, training = result['notes']
  assert 'validation data differs, so their measures do not' in validation
  assert 'compare: one, other seed | other_data.' in validation
  assert 'training data differs' in training
  assert 'NOTE: The validation data differs' in err
  dom = browser.open_page(out / 'index.html')
  assert any(validation in text for text in dom.texts)


def test_the_time_is_that_of_the_training_alone(tmp_path):
  """8 images a step; 4 steps at 16 images/s, 4 at 32, and 2 without speed."""
  rows = [
    {'step': 1, 'train/loss': 1.0},  # it compiled
    {'step': 5, 'train/loss': 1.0, 'images_per_second': 16.0},
    {'step': 5, writers.STEP_LOSSES: [1.0] * 4},
    {'step': 9, 'train/loss': 1.0, 'images_per_second': 32.0},
    {'step': 9, 'eval/loss': 1.0},
  ]

  speed = run_record.speed(rows, 10, 8)
  assert speed['images_per_second'] == pytest.approx(64 / 3)
  assert speed['training_seconds'] == pytest.approx(3 * 10 / 8)
  assert set(run_record.speed(rows[:1], 10, 8).values()) == {None}


def test_the_curves_are_those_of_the_histories(runs):
  found = [run_record.load(str(f), n) for n, f in runs.items()]
  for unit, length in (('steps', STEPS), ('epochs', STEPS * 8 / 30)):
    figure = compare.draw_validation(found, unit)
    for axes, key in zip(figure.axes, ('eval/top1', 'eval/loss'), strict=True):
      line = axes.get_lines()[0]
      rows = [row for row in found[0].rows if key in row]
      assert list(line.get_ydata()) == [row[key] for row in rows]
      assert line.get_xdata()[-1] == pytest.approx(length)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == list(CHANGES)
  steps, losses = figures.step_losses(found[1].rows)
  assert steps.tolist() == list(range(1, STEPS + 1))
  mean, deviation = compare.draw_training_loss(found, 'steps').axes
  assert mean.get_lines()[1].get_ydata()[-1] == pytest.approx(losses.mean())
  deviations = deviation.get_lines()[1].get_ydata()
  assert deviations[-1] == pytest.approx(np.std(losses))


def test_a_run_under_way_is_named(runs, tmp_path, capsys):
  """Its newest checkpoint is before the end, its history beyond it."""
  copy = tmp_path / 'copy' / 'one'
  shutil.copytree(runs['one'], copy)
  shutil.rmtree(copy / 'checkpoints' / str(STEPS))
  code, result, _ = compare_runs(
    capsys, '--workdirs', runs['one'], copy, '--out', tmp_path / 'out'
  )
  assert code == 0
  names = [row['name'] for row in result['runs']]
  assert names == [str(runs['one']), str(copy)]  # both are called `one`
  assert result['runs'][1]['steps'] == 15
  assert result['notes'] == [f'Not done yet: {copy} (step 15 of 16).']
  assert run_record.load(str(copy), 'one').rows[-1]['step'] == 15
  history = writers.read_rows(copy)
  assert history[-1]['step'] == 16
  row = next(r for r in history if r['step'] == 15 and 'eval/loss' in r)
  assert result['runs'][1]['loss'] == row['eval/loss']


def test_the_final_state_may_be_an_earlier_one(runs, small, tmp_path, capsys):
  recipe = commands.write_recipe(
    tmp_path,
    **small,
    num_steps=STEPS,
    eval_every_steps=4,
    early_stopping__enabled=True,
    early_stopping__patience=2,
    early_stopping__threshold=1.0,  # no evaluation is so much better
  )
  workdir = tmp_path / 'run'
  arguments = ['--config', str(recipe), '--workdir', str(workdir)]
  capsys.readouterr()
  assert train_main.main([*arguments, '--config.report=False', '--json']) == 0
  trained = json.loads(capsys.readouterr().out)
  assert trained['step'] < 12
  run = run_record.load(str(workdir), 'run')
  assert run.final_step == trained['step']
  assert run.step == 12
  assert run.is_done
  assert run.values['loss'] == trained['eval/loss']


def test_what_is_no_run_is_refused(runs, tmp_path, capsys):
  out = ['--out', tmp_path / 'out']
  code, _, err = compare_runs(capsys, '--workdirs', tmp_path, *out)
  assert code == 2
  assert 'is not the folder of a run' in err
  code, _, err = compare_runs(
    capsys, '--workdirs', runs['one'], f'{runs["one"]}/', *out
  )
  assert code == 2
  assert 'twice' in err
  assert not (tmp_path / 'out').exists()
