import json
import random
import signal
import sys
import time

import optuna
import pytest

from alexnet_jax import files
from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import sweep
from alexnet_jax.training import loop
from tests.system import commands

LENGTH = {'num_steps': 6, 'eval_every_steps': 2}
KEY = 'optimizer.learning_rate'
ONE = ['--param', f'{KEY}=0.001..0.1', '--trials', 1]
# One that learns, one that does not, one that loses its loss, and one that
# four devices do not share: done, lost, refused, done, pruned, refused.
SIX = ['--param', f'{KEY}=0.02|1e-9|1e30', '--param', 'global_batch_size=8|6']
SIX += ['--monitor', 'eval/loss', '--seed', '2', '--trials', '6']


@pytest.fixture(autouse=True, scope='module')
def early_pruning():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sweep, '_PRUNING_STARTS', (1, 2))
    yield


@pytest.fixture(scope='module')
def done(tmp_path_factory, small):
  """Arguments of a sweep of six trials that nothing disturbed."""
  folder = tmp_path_factory.mktemp('done')
  recipe = commands.write_recipe(folder, **small, **LENGTH)
  arguments = ['--config', str(recipe), '--workdir', str(folder / 'sweep')]
  assert sweep.main([*arguments, *SIX]) == 0
  return arguments


@pytest.fixture
def recipe(tmp_path, small):
  return commands.write_recipe(tmp_path, **small, **LENGTH)


@pytest.fixture
def run(call, recipe, tmp_path):
  """Calls a sweep of its own: (exit code, result, errors)."""
  arguments = ['--config', recipe, '--workdir', tmp_path / 'sweep']
  return lambda *more: call(sweep, *arguments, *more)


def test_the_trials_end_as_their_values_want(done, call):
  code, result, err = call(sweep, *done, *SIX)
  assert (code, len(result['trials'])) == (0, 6)
  finished = []
  for trial in result['trials']:
    values = trial['values']
    if values['global_batch_size'] == 6:
      expected = 'failed', 'config.global_batch_size is 6', 0
    elif values[KEY] == 1e30:
      expected = 'failed', 'the loss is', 1
    elif values[KEY] == 1e-9 and finished:
      expected = 'pruned', '', 2  # of three evaluations
    else:
      expected = 'done', '', 3
      finished.append(trial['value'])
    assert trial['state'] == expected[0], trial
    assert expected[1] in (trial['reason'] or '')
    assert len(trial['evaluations']) <= expected[2]
  states = [trial['state'] for trial in result['trials']]
  assert [states.count(s) for s in ('done', 'pruned', 'failed')] == [2, 1, 3]
  best = result['best']
  assert best['values'][KEY] == 0.02
  assert best['value'] == min(finished)
  assert f'to train trial {best["trial"]}, the best' in err


def test_a_trial_is_the_run_that_its_command_trains(done, tmp_path, call):
  _, result, _ = call(sweep, *done, *SIX)
  values = result['best']['values']
  arguments = [f'--config.{key}={value}' for key, value in values.items()]
  assert all(argument in result['command'] for argument in arguments)
  trained = commands.train_here(done[1], tmp_path / 'run', *arguments)
  assert trained['state_digest'] == result['best']['state_digest']
  assert trained['eval/loss'] == result['best']['value']


def test_a_signal_leaves_with_75_and_the_trial_goes_on(run, monkeypatch):
  evaluate = loop._evaluate

  def signalled(*arguments):
    evaluate(*arguments)
    signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop, '_evaluate', signalled)
    code, _, err = run(*ONE)
  assert (code, 'saved step 2' in err) == (75, True)
  code, result, err = run(*ONE)
  assert (code, 'goes on from checkpoint 2' in err) == (0, True)
  (trial,) = result['trials']
  assert (trial['state'], len(trial['evaluations'])) == ('done', 3)


def test_a_sweep_without_a_finished_trial_fails(run):
  code, result, err = run('--trials', 2, '--param', 'global_batch_size=6|7')
  assert (code, result['best']) == (1, None)
  assert err.count('trial 1 failed: config.global_batch_size is') == 2
  assert 'no trial came to its end' in err


def test_a_damaged_image_ends_the_sweep(run, images):
  """It is found by the mean of the pixels, before the first checkpoint."""
  image = images / 'a' / '4.png'
  image.write_bytes(image.read_bytes()[:500])
  own = [f'--config.data.path={images}', '--config.data.source=folder']
  answer = run(*ONE, *own, '--config.data.mean=channel')
  assert 'failed' not in commands.refused(answer, '4.png')


def test_a_trial_that_another_process_trains_is_none_that_failed(run, tmp_path):
  folder = tmp_path / 'sweep' / 'trial_0000'
  folder.mkdir(parents=True)
  with files.lock(folder, ''):
    err = commands.refused(run(*ONE), 'another run is training in')
  assert 'failed' not in err


DROPOUT = '--param model.dropout=0..1'
FOLDER = '--config.data.source=folder'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('', 'needs --param'),
    ('--param model.drop=0..1', 'did you mean config.model.dropout'),
    (f'{DROPOUT} --seed -1', '--seed is -1'),
    (f'{DROPOUT} {FOLDER} --config.data.path=/nowhere', 'no folder at'),
    (DROPOUT, "pip install -e '.[sweep]'"),
  ],
)
def test_it_refuses_before_it_trains(
  run, tmp_path, monkeypatch, arguments, message
):
  if message.startswith('pip'):
    monkeypatch.setitem(sys.modules, 'optuna', None)
  commands.refused(run(*arguments.split()), message)
  assert not (tmp_path / 'sweep').exists()


@pytest.mark.parametrize('entry', ['report', 'trial_0000/events'])
def test_a_sweep_follows_no_links(run, tmp_path, entry):
  (tmp_path / 'mine').mkdir()
  link = tmp_path / 'sweep' / entry
  link.parent.mkdir(parents=True)
  link.symlink_to(tmp_path / 'mine')
  err = commands.refused(run(*ONE), f'{entry} is a link')
  assert 'failed' not in err
  assert list((tmp_path / 'mine').iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_and_continued_sweep_makes_the_same_trials(recipe, tmp_path):
  def start(name):
    return commands.start(
      *(sys.executable, '-m', 'alexnet_jax.evaluation.sweep', '--json'),
      *('--config', recipe, '--workdir', tmp_path / name),
      *('--trials', '12', '--param', f'{KEY}=1e-4..1:log'),
      *('--param', 'optimizer.name=sgd|optax.adam', '--param', 'seed=0..1'),
    )

  def finish(name):
    process = start(name)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    trials = json.loads(out.splitlines()[-1])['trials']
    return [{**trial, 'workdir': ''} for trial in trials]

  expected = finish('unbroken')
  assert len(expected) == 12  # the last two are no blind draws
  assert {'done', 'pruned'} <= {trial['state'] for trial in expected}
  rng, kills = random.Random(0), 0
  for trial in (0, 3, 10):
    process = start('killed')
    folder = tmp_path / 'killed' / f'trial_{trial:04d}'
    while process.poll() is None and not folder.exists():
      time.sleep(0.02)
    time.sleep(rng.uniform(0, 3))  # it starts, trains, saves or tells
    process.kill()
    process.communicate()
    kills += process.returncode == -signal.SIGKILL
  assert kills > 1  # the last may come when all is done
  assert finish('killed') == expected


# The study alone, without training.

TEXTS = (f'{KEY}=1e-4..1e-1:log', 'model.hidden=(8,)|(64,)|(64,8)')
FIXED = {'--monitor': 'eval/top1', '--pruner': 'median'}


def open_study(folder, texts=TEXTS, config=None, **fixed):
  config = config or make_config()
  space = sweep.parse_space(texts, config)
  folder.mkdir(exist_ok=True)
  return sweep.open_study(folder, config, space, FIXED | fixed), space


def test_a_study_is_continued_with_what_it_was_made_with(tmp_path):
  open_study(tmp_path, data='a')
  open_study(tmp_path, texts=reversed(TEXTS), data='a')
  config = make_config()
  # Trials have their own rate, and the last one changes no training.
  config.optimizer.update(momentum=0.5, learning_rate=0.5)
  config.update(num_epochs=3.0, log_every_steps=3)
  texts = (TEXTS[0], 'model.hidden=(8,)|(64,)')
  with pytest.raises(UserError) as info:
    open_study(tmp_path, texts, config, data='b', **{'--pruner': 'none'})
  lines = str(info.value).splitlines()
  assert lines[0].endswith('study.db was made with something else:')
  assert [line.strip() for line in lines[1:-1]] == [
    '--param model.hidden: '
    "CategoricalDistribution(choices=('(8,)', '(64,)', '(64,8)')) -> "
    "CategoricalDistribution(choices=('(8,)', '(64,)'))",
    '--pruner: median -> none',
    'config.num_epochs: 90.0 -> 3.0',
    'config.optimizer.momentum: 0.9 -> 0.5',
    'data: a -> b',
  ]


def test_a_folder_may_have_any_name(tmp_path):
  folder = tmp_path / 'a b?c#d%20{e}'
  sweep.add_trial(*open_study(folder), 0)
  assert open_study(folder)[0].trials


def test_a_damaged_study_is_refused(tmp_path):
  (tmp_path / 'study.db').write_bytes(b'no database' * 100)
  with pytest.raises(UserError, match=r'study\.db is damaged'):
    open_study(tmp_path)


def test_values_have_the_type_of_their_key():
  texts = f"""
    config.{KEY}=1e-4..1e-1:log data.num_threads=2..8:step=3
    optimizer.nesterov=True|False model.hidden=(256,)|(256,128)|()
    ema_decay=0|0.5"""
  space = sweep.parse_space(texts.split(), make_config())
  study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
  rows = [sweep.values_of(study.ask(space).params) for _ in range(60)]
  make_config().update_from_flattened_dict(rows[0])  # it takes their types
  found = {key: [row[key] for row in rows] for key in rows[0]}
  assert all(1e-4 <= value <= 1e-1 for value in found[KEY])
  # By the logarithm about a third lies in each decade.
  assert sum(value < 1e-3 for value in found[KEY]) > 10
  for key, values in {
    'data.num_threads': {2, 5, 8},
    'optimizer.nesterov': {True, False},
    'model.hidden': {(256,), (256, 128), ()},
    'ema_decay': {0.0, 0.5},
  }.items():
    assert set(map(repr, found[key])) == set(map(repr, values))


@pytest.mark.parametrize(
  ('texts', 'message'),
  [
    ('schedule.power=1|2', "power is 'swept', which has no effect"),
    (f'{KEY}=0.1', 'where SPEC is LOW..HIGH'),
    (f'{KEY}=0..1:log', r'=0..1:log: .*low.* got \(low=0.0'),
    ('global_batch_size=0.5..2', "size is '0.5'; it takes a whole number"),
    ('optimizer.name=sgd|adagrad', "'adagrad' is not one of"),
  ],
)
def test_what_cannot_be_understood_is_refused(texts, message):
  with pytest.raises(UserError, match=message):
    sweep.parse_space(texts.split(), make_config())
