import json
import shutil

import matplotlib.image
import numpy as np
import pytest

from alexnet_jax.evaluation import compare
from alexnet_jax.training import accounting, writers
from tests import browser
from tests.evaluation.conftest import read_csv
from tests.system import commands

CHANGES = {
  'one': (),
  'other seed': ('--config.seed=1', '--config.log_every_steps=2'),
  'other_data': ('--config.data.synthetic_examples=60',),
}
STEPS = 16


@pytest.fixture(scope='module')
def runs(tmp_path_factory, small):
  """{name: folder of a run}."""
  folder = tmp_path_factory.mktemp('runs')
  lengths = {'num_steps': STEPS, 'eval_every_steps': 5, 'save_every_steps': 4}
  recipe = commands.write_recipe(folder, **small, **lengths, checkpoint__keep=9)
  for name, changes in CHANGES.items():
    commands.train_here(recipe, folder / name, *changes)
  return {name: folder / name for name in CHANGES}


@pytest.fixture
def compared(tmp_path, call):
  """Compares runs; (exit code, result, errors)."""
  return lambda *runs: call(compare, *runs, '--out', tmp_path / 'out')


def until(run, step, copy):
  """A copy of a run, as if it had been interrupted at a step."""
  shutil.copytree(run, copy)
  for checkpoint in (copy / 'checkpoints').iterdir():
    if int(checkpoint.name) > step:
      shutil.rmtree(checkpoint)
  return copy


def open_page(tmp_path):
  return browser.open_page(tmp_path / 'out' / 'index.html')


def test_repetitions_have_a_mean_and_its_error(runs, tmp_path, compared):
  """And the page says in which keys of the config they differ."""
  _, result, _ = compared(runs['one'], runs['other seed'])
  assert result['notes'] == []
  (group,) = result['groups']
  assert group['runs'] == ['one', 'other seed']
  assert group['seeds'] == [0, 1]
  one, other = (row['loss'] for row in result['runs'])
  # Of two numbers the sample deviation is their distance by the root of 2, and
  # the quantile of Student's t with one degree of freedom is 12.7062.
  mean, error = (one + other) / 2, abs(one - other) / 2
  assert one != other
  assert group['loss'] == pytest.approx(
    {
      'mean': mean,
      'standard_error': error,
      'deviation': error * 2**0.5,
      'low': mean - 12.7062047 * error,
      'high': mean + 12.7062047 * error,
    }
  )
  title = compare._SPREAD_TITLE
  dom = open_page(tmp_path)
  row = [cell.text for cell in dom.tables[title].rows[1]]
  assert row[:3] == ['one, other seed', '0, 1', '2']
  wanted = f'{mean:.4f} ± {error * 2**0.5:.4f} [{group["loss"]["low"]:.4f},'
  assert ' '.join(row[3].split()).startswith(wanted)
  keys = dom.tables['Keys of the config that differ'].rows
  assert [row[0].text for row in keys[1:]] == ['log_every_steps', 'seed']


def test_the_numbers_are_those_of_the_run(runs, tmp_path, compared):
  _, result, _ = compared(*runs.values())
  assert [row['name'] for row in result['runs']] == list(CHANGES)
  for row in result['runs']:
    history = writers.read_rows(row['workdir'])
    last = [r for r in history if 'eval/loss' in r][-1]
    for name in compare.MEASURES:
      assert row[name] == last[f'eval/{name}']
    assert row['steps'] == row['measured_step'] == STEPS
    examples = 60 if row['name'] == 'other_data' else 30
    assert row['epochs'] == STEPS * 8 / examples
    # Dense layers of 200 x 8 and 8 x 3, a convolution of 3 x 3.
    assert row['parameters'] == 27 * 8 + 8 + 200 * 8 + 8 + 8 * 3 + 3
    assert row['training_flops_per_image'] > row['forward_flops_per_image'] > 0
  for name in ('validation', 'training_loss'):
    assert matplotlib.image.imread(tmp_path / f'out/{name}.png').std() > 0.01
  header, *rows = read_csv(tmp_path / 'out' / 'table.csv')
  assert [dict(zip(header, row, strict=True)) for row in rows] == [
    {key: str(value) for key, value in row.items()} for row in result['runs']
  ]


def test_other_data_is_noted_in_table_and_page(runs, tmp_path, compared):
  _, result, err = compared(*runs.values())
  validation, training = result['notes']
  assert 'validation data differs, so their measures do not' in validation
  assert 'compare: one, other seed | other_data.' in validation
  assert 'training data differs' in training
  assert f'NOTE: {validation}' in err
  assert any(validation in text for text in open_page(tmp_path).texts)


def test_the_time_is_that_of_the_training_alone(runs, tmp_path):
  """Two processes; the first was killed, four steps were made again."""
  copy = shutil.copytree(runs['one'], tmp_path / 'copy')
  kinds = dict.fromkeys(accounting.KINDS, 1.0) | {'begun': 0}
  lives = [
    {**kinds, 'first_step': 0, 'step': 9, 'train': 6.0, 'data_wait': 2.0},
    {**kinds, 'first_step': 5, 'step': STEPS, 'train': 3.0, 'data_wait': 2.0},
  ]
  lines = '\n'.join(map(json.dumps, lives)) + '\n'
  (copy / accounting.TIMES_FILE).write_text(lines)
  numbers = compare.load(str(copy), 'copy').numbers
  assert numbers['training_seconds'] == pytest.approx(8 / 2 + 5)
  assert numbers['images_per_second'] == pytest.approx((4 + STEPS - 6) * 8 / 9)
  (copy / accounting.TIMES_FILE).unlink()
  numbers = compare.load(str(copy), 'copy').numbers
  assert {numbers[key] for key in compare._SPEED} == {None}


def test_confidence_intervals_of_shares_stay_within_0_and_1(runs):
  loaded = [compare.load(str(runs[n]), n) for n in ('one', 'other seed')]
  for run, value in zip(loaded, (0.2, 0.9), strict=True):
    run.numbers.update(top1=value, loss=value)
  (group,) = compare.groups(loaded)
  assert (group['top1']['low'], group['top1']['high']) == (0, 1)
  assert group['loss']['low'] < 0
  (alone,) = compare.groups(loaded[:1])
  assert (alone['n'], alone['top1']) == (1, {'mean': 0.2})


def test_the_curves_are_those_of_the_histories(runs):
  found = [compare.load(str(f), n) for n, f in runs.items()]
  end = STEPS * 8 / 30
  steps, _ = compare.draw(found, 'steps').values()
  assert steps.axes[0].get_lines()[0].get_xdata()[-1] == STEPS
  validation, training = compare.draw(found, 'epochs').values()
  for axes, key in zip(validation.axes, ('top1', 'loss'), strict=True):
    line = axes.get_lines()[0]
    rows = [row for row in found[0].rows if 'eval/loss' in row]
    assert list(line.get_ydata()) == [row[f'eval/{key}'] for row in rows]
    assert line.get_xdata()[-1] == pytest.approx(end)
  names = [text.get_text() for text in validation.legends[0].get_texts()]
  assert names == list(CHANGES)
  losses = [v for r in found[0].rows for v in r.get(writers.STEP_LOSSES, [])]
  assert len(losses) == STEPS
  values = np.mean(losses), np.std(losses)
  for axes, value in zip(training.axes, values, strict=True):
    line = axes.get_lines()[0]
    assert line.get_ydata()[-1] == pytest.approx(value)
    assert line.get_xdata()[-1] == pytest.approx(end)


def test_only_finished_runs_of_different_seeds_are_repetitions(
  runs, tmp_path, compared
):
  """The interrupted one shows the measures of step 10, and says so."""
  copy = until(runs['one'], STEPS, tmp_path / 'copy')
  under_way = until(runs['other seed'], 12, tmp_path / 'a' / 'other seed')
  _, result, _ = compared(runs['one'], under_way, copy, runs['other seed'])
  (group,) = result['groups']
  assert group['runs'] == ['one', str(runs['other seed'])]
  row = result['runs'][1]
  assert row['name'] == str(under_way)  # two are called `other seed`
  assert (row['steps'], row['measured_step']) == (12, 10)
  history = writers.read_rows(under_way)
  measured = [r for r in history if r['step'] == 10 and 'eval/loss' in r]
  assert row['loss'] == measured[0]['eval/loss']
  assert result['notes'] == [
    f'{under_way} is not done yet: step 12 of 16.',
    'copy has recipe and seed of one, so it is no repetition.',
  ]
  table = open_page(tmp_path).tables['Validation']
  cells = [[cell.text for cell in row[:2]] for row in table.rows[1:3]]
  assert cells == [['one', '16'], [str(under_way), '10']]


def test_what_is_no_run_is_refused(runs, tmp_path, compared):
  for workdirs, message in (
    ([tmp_path], 'is not the folder of a run'),
    ([until(runs['one'], 0, tmp_path / 'begun')], 'has no checkpoint'),
    ([runs['one'], f'{runs["one"]}/'], 'twice'),
    ([], 'there is no run'),
  ):
    commands.refused(compared(*workdirs), message)
  assert not (tmp_path / 'out').exists()
