"""The commands as their users start them."""

import sys

import numpy as np
import pytest

from alexnet_jax.data import make_source, order
from alexnet_jax.evaluation import evaluate
from alexnet_jax.training import writers
from tests.data import pictures
from tests.system import commands


def test_help_needs_no_jax():
  """`import jax` alone would take most of the two seconds."""
  modules = ('main', 'predict', 'evaluation.evaluate', 'evaluation.compare')
  modules += ('evaluation.features',)
  program = (
    'import runpy, sys\n'
    f'for module in {modules}:\n'
    '  sys.argv = ["x", "--help"]\n'
    '  try:\n'
    '    runpy.run_module(f"alexnet_jax.{module}", run_name="__main__")\n'
    '  except SystemExit as exit:\n'
    '    assert not exit.code\n'
    'loaded = {"jax", "cv2", "grain", "tensorflow"} & set(sys.modules)\n'
    'assert not loaded, loaded\n'
  )
  out, _ = commands.done(commands.run(sys.executable, '-c', program))
  assert out.count(' --json ') >= len(modules)


def test_summary_of_the_mission_needs_no_data(main):
  line = ('--config', 'configs/imagenet.py', '--summary')
  result, err = commands.done(main(*line))
  assert 'kernel 11 x 11 x 3 x 96' in err
  assert '55 x 55 x 96' in err
  assert '11 x 11, stride 4, padding 2 and 1' in err
  assert 'activation relu, dropout 0.5' in err
  assert result['parameters'] == 62_378_344
  assert result['training_flops_per_image'] == pytest.approx(6.601e9, rel=1e-4)


def test_dry_run_goes_through_everything_and_leaves_nothing(tmp_path, main):
  recipe = commands.write_recipe(tmp_path)
  run = ('--config', recipe, '--workdir', tmp_path / 'run', '--dry_run')
  result, _ = commands.done(main(*run))
  assert result['step'] == 1
  spent = {kind for kind, seconds in result['seconds'].items() if seconds}
  assert {'start', 'compile', 'evaluate', 'save'} <= spent
  assert not (tmp_path / 'run').exists()


def test_a_run_learns_and_leaves_its_history(trained):
  _, workdir, result = trained
  rows = writers.read_rows(workdir)
  evaluations = [row for row in rows if 'eval/loss' in row]
  assert [row['step'] for row in evaluations] == [10, 20]
  assert evaluations[-1]['eval/loss'] < 0.8 * np.log(4)
  assert result['eval/loss'] == evaluations[-1]['eval/loss']
  logs = [row for row in rows if 'train/loss' in row]
  assert [row['step'] for row in logs] == list(range(4, 21, 4))
  assert all(row['images_per_second'] > 0 for row in logs)
  assert all(0 <= row['data_wait_fraction'] <= 1 for row in logs)
  events = b''.join(p.read_bytes() for p in (workdir / 'events').iterdir())
  assert b'eval/top1' in events


def test_evaluate_prints_the_numbers_of_the_run(trained, call):
  _, workdir, result = trained
  run = (evaluate, '--workdir', workdir)
  again, err = commands.done(call(*run))
  shared = ('eval/loss', 'eval/top1', 'eval/top5', 'step', 'state_digest')
  assert {k: again[k] for k in shared} == {k: result[k] for k in shared}
  assert again['examples'] == 24
  _, other, _ = call(*run, '--split', 'train', '--checkpoint', '10')
  assert (other['examples'], other['step']) == (96, 10)
  code, _, err = call(*run, '--checkpoint', '31')
  assert (code, "'31'" in err) == (2, True)


@pytest.mark.slow
def test_marvin_learns_the_digits(tmp_path):
  result = commands.train_here('configs/marvin.py', tmp_path)
  assert result['eval/top1'] >= 0.97


def test_runs_that_cannot_be_are_refused(trained, tmp_path, main):
  recipe, workdir, _ = trained
  reason = f'{recipe}: Not a directory; name another folder'
  for place, option, *words in (
    (workdir, '--config.num_steps=10', 'at step 20 already, beyond the 10 st'),
    (recipe / 'run', '--dry_run', f'{recipe / "run"} cannot be used: {reason}'),
    (tmp_path / 'x', '--config.global_batch_size=30', 'is 30', '4 devices'),
  ):
    answer = main('--config', recipe, '--workdir', place, option)
    commands.refused(answer, *words)
    assert answer[1] is None
  assert not (tmp_path / 'x').exists()


def test_a_lost_loss_stops_the_run(trained, tmp_path, main):
  changes = ('eval_every_steps=99', 'optimizer.learning_rate=1e20')
  options = [f'--config.{key}' for key in changes]
  run = ('--config', trained[0], '--workdir', tmp_path / 'run', *options)
  code, result, err = main(*run, '--config.save_every_steps=1')
  assert (code, result) == (1, None)
  for text in ('the loss is', 'between steps', 'learning_rate'):
    assert text in err


@pytest.mark.parametrize(('asked', 'first'), [(6, 8), (500, 13)])
def test_a_flat_loss_warns(tmp_path, caplog, asked, first):
  """Once, at the first log point from there on, or the end of the run."""
  recipe = commands.write_recipe(
    tmp_path,
    num_steps=13,
    optimizer__learning_rate=1e-9,
    model__kernel_init='paper',
    guards__flat_loss_steps=asked,
  )
  commands.train_here(recipe, tmp_path / 'run')
  assert caplog.text.count('that of guessing') == 1
  assert f'after {first} steps' in caplog.text


def test_unreadable_images_are_left_out_and_counted(tmp_path, caplog):
  """Two classes of ten photos, one of them broken."""
  names = [f'{"ab"[i % 2]}/{i}.png' for i in range(20)]
  files = {name: pictures.png(i) for i, name in enumerate(names)}
  files[names[-1]] = b'broken'
  photos = str(pictures.write(tmp_path / 'photos', files))
  options = {'data__source': 'folder', 'data__path': photos, 'num_steps': 10}
  recipe = commands.write_recipe(tmp_path, **options)
  skip = '--config.data.unreadable=skip'
  commands.train_here(recipe, tmp_path / 'run', skip)
  assert caplog.text.count('cannot be decoded') == 1
  rows = writers.read_rows(tmp_path / 'run')
  source = make_source('folder', 'train', path=photos)
  broken = [source.describe(i).endswith(names[-1]) for i in range(16)]
  drawn = order.examples_at(np.arange(8 * 8), 16, 0)  # steps in the log
  counted = sum(row.get('train/unreadable', 0) for row in rows)
  assert counted == sum(broken[i] for i in drawn)
  evaluated = [r['eval/unreadable'] for r in rows if 'eval/loss' in r]
  assert evaluated == [0 if any(broken) else 1] * len(evaluated)
