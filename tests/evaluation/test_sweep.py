import json
import random
import shutil
import signal
import sys
import time

import matplotlib.image
import numpy as np
import optuna
import PIL.Image
import pytest

from alexnet_jax import files
from alexnet_jax import main as train_main
from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import figures
from alexnet_jax.evaluation import study as study_lib
from alexnet_jax.evaluation import sweep
from alexnet_jax.training import loop
from alexnet_jax.training import writers
from tests.system import commands

SWEEP = [sys.executable, '-m', 'alexnet_jax.evaluation.sweep']
LENGTH = {'num_steps': 15, 'eval_every_steps': 5}
# One that learns, one that does not, one that loses its loss, and one that
# four devices do not share.
SPACE = [
  *('--param', 'optimizer.learning_rate=0.02|1e-9|1e30'),
  *('--param', 'global_batch_size=8|6'),
  *('--monitor', 'eval/loss', '--seed', '2'),
]
TRIALS = 6  # done, lost, refused, done, pruned, refused


def run_sweep(capsys, recipe, workdir, *more):
  """(exit code, result of --json, errors) of the command in this process."""
  capsys.readouterr()
  code = sweep.main(
    ['--config', str(recipe), '--workdir', str(workdir), '--json']
    + [str(m) for m in more]
  )
  out, err = capsys.readouterr()
  return code, json.loads(out) if out else None, err


@pytest.fixture(autouse=True)
def early_pruning(monkeypatch):
  monkeypatch.setattr(study_lib, '_PRUNER_STARTUP_TRIALS', 1)


@pytest.fixture(scope='module')
def done(tmp_path_factory, small):
  """(recipe, folder, result) of a sweep that nothing disturbed."""
  folder = tmp_path_factory.mktemp('done')
  recipe = commands.write_recipe(folder, **small, **LENGTH)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(study_lib, '_PRUNER_STARTUP_TRIALS', 1)
    arguments = ['--config', str(recipe), '--workdir', str(folder / 'sweep')]
    code = sweep.main([*arguments, *SPACE, '--trials', str(TRIALS)])
  assert code == 0
  return recipe, folder / 'sweep'


def test_the_trials_end_as_their_values_want(done, capsys):
  code, result, err = run_sweep(
    capsys, done[0], done[1], *SPACE, '--trials', TRIALS
  )
  assert code == 0
  assert len(result['trials']) == TRIALS
  seen = set()
  finished = 0
  for trial in result['trials']:
    values = trial['values']
    if values['global_batch_size'] == 6:
      expected = 'failed', 'config.global_batch_size is 6'
    elif values['optimizer.learning_rate'] == 1e30:
      expected = 'failed', 'the loss is'
    elif values['optimizer.learning_rate'] == 1e-9 and finished:
      expected = 'pruned', ''
    else:
      expected, finished = ('done', ''), finished + 1
    assert trial['state'] == expected[0], trial
    assert expected[1] in (trial['reason'] or '')
    # Pruned at the second of three evaluations.
    assert len(trial['evaluations']) <= {'pruned': 2, 'done': 3}.get(
      trial['state'], 1
    )
    seen.add(expected)
  assert len(seen) == 4
  best = result['best']
  assert best['values']['optimizer.learning_rate'] == 0.02
  assert best['value'] == min(
    t['value'] for t in result['trials'] if t['state'] == 'done'
  )
  assert f'to train trial {best["trial"]}, the best' in err


def test_the_pictures_show_the_trials(done, capsys, monkeypatch):
  drawn, save = {}, figures.save

  def spy(figure, path):
    drawn[path.stem] = figure
    save(figure, path)

  monkeypatch.setattr(figures, 'save', spy)
  _, result, _ = run_sweep(capsys, *done, *SPACE, '--trials', TRIALS)
  for path in result['pictures'].values():
    assert matplotlib.image.imread(path).std() > 0.01
  trials = result['trials']
  values = [t['value'] for t in trials if t['state'] == 'done']
  panels = drawn['parameters'].axes[:2]  # then the colors
  for axes in [*drawn['history'].axes, *panels]:
    points = axes.collections[0].get_offsets()
    assert [y for _, y in points] == pytest.approx(values)
  assert {axes.get_xlabel() for axes in panels} == {
    'optimizer.learning_rate',
    'global_batch_size',
  }


@pytest.mark.slow
def test_a_trial_is_the_run_that_its_command_trains(done, tmp_path, capsys):
  _, result, _ = run_sweep(capsys, done[0], done[1], *SPACE, '--trials', TRIALS)
  values = result['best']['values']
  arguments = [f'--config.{key}={value}' for key, value in values.items()]
  assert all(argument in result['command'] for argument in arguments)
  code = train_main.main(
    [
      *('--config', str(done[0]), '--workdir', str(tmp_path / 'run'), '--json'),
      *(*arguments, '--config.report=False'),
    ]
  )
  assert code == 0
  trained = json.loads(capsys.readouterr().out)
  assert trained['state_digest'] == result['best']['state_digest']
  assert trained['eval/loss'] == result['best']['value']


def test_a_signal_leaves_with_75_and_the_trial_goes_on(
  done, tmp_path, capsys, monkeypatch
):
  recipe, workdir = done[0], tmp_path / 'sweep'
  evaluate = loop._evaluate

  def signalled(run, live, on_evaluation):
    evaluate(run, live, on_evaluation)
    signal.raise_signal(signal.SIGTERM)

  one = ['--param', 'optimizer.learning_rate=0.001..0.1', '--trials', 1]
  with monkeypatch.context() as patch:
    patch.setattr(loop, '_evaluate', signalled)
    code, _, err = run_sweep(capsys, recipe, workdir, *one)
  assert code == 75
  assert 'saved step 5' in err
  code, result, err = run_sweep(capsys, recipe, workdir, *one)
  assert code == 0
  assert 'goes on from checkpoint 5' in err
  assert [trial['state'] for trial in result['trials']] == ['done']
  assert len(result['trials'][0]['evaluations']) == 3


def test_a_sweep_without_a_finished_trial_fails(tmp_path, small, capsys):
  recipe = commands.write_recipe(tmp_path, **small, **LENGTH)
  code, result, err = run_sweep(
    capsys,
    *(recipe, tmp_path / 'sweep', '--trials', 2),
    *('--param', 'global_batch_size=6|7'),
  )
  assert code == 1
  assert result['best'] is None
  assert 'trial 1 failed: config.global_batch_size is' in err
  assert 'no trial came to its end' in err


@pytest.mark.slow
def test_a_trial_whose_own_values_do_not_fit_fails_alone(
  done, tmp_path, capsys
):
  other = tmp_path / 'other'
  code = train_main.main(
    [
      *('--config', str(done[0]), '--workdir', str(other)),
      *('--config.num_steps=1', '--config.report=False'),
    ]
  )
  assert code == 0
  code, result, err = run_sweep(
    capsys,
    *(done[0], tmp_path / 'sweep', '--trials', 4, '--seed', 1),
    *('--param', 'model.hidden=(7,)|(8,)', f'--config.init.workdir={other}'),
  )
  assert code == 0
  states = {
    (*trial['values']['model.hidden'], trial['state'])
    for trial in result['trials']
  }
  assert states == {(7, 'failed'), (8, 'done')}
  reasons = {trial['reason'] for trial in result['trials']} - {None}
  assert all(f'the weights of {other} do not fit' in r for r in reasons)
  assert f'failed: the weights of {other} do not fit' in err


def in_a_folder(folder, small):
  """Returns a recipe on images of noise."""
  rng = np.random.default_rng(0)
  for name in ('a', 'b'):
    (folder / 'images' / name).mkdir(parents=True)
    for i in range(10):
      pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
      image = PIL.Image.fromarray(pixels)
      image.save(folder / 'images' / name / f'{i}.png')
  return commands.write_recipe(
    folder,
    **small,
    data__source='folder',
    data__path=str(folder / 'images'),
    num_steps=2,
    eval_every_steps=1,
  )


ONE = ['--param', 'optimizer.learning_rate=0.001..0.1', '--trials', 1]


def test_a_damaged_image_ends_the_sweep(tmp_path, small, capsys):
  """It is found by the mean of the pixels, before the first checkpoint."""
  recipe = in_a_folder(tmp_path, small)
  image = tmp_path / 'images' / 'a' / '3.png'
  image.write_bytes(image.read_bytes()[:500])
  mean = '--config.data.mean=channel'
  code, _, err = run_sweep(capsys, recipe, tmp_path / 'sweep', *ONE, mean)
  assert (code, '3.png' in err, 'failed' in err) == (2, True, False)


@pytest.mark.slow
@pytest.mark.parametrize('what', ['missing', 'busy'])
def test_what_all_trials_would_meet_ends_the_sweep(
  tmp_path, small, capsys, monkeypatch, what
):
  """And the trial is made once it is mended."""
  recipe, workdir = in_a_folder(tmp_path, small), tmp_path / 'sweep'
  images, away = tmp_path / 'images', tmp_path / 'away'
  if what == 'busy':
    (workdir / 'trial_0000').mkdir(parents=True)
    busy = files.lock(workdir / 'trial_0000', '')
    message = 'another run is training in'
  else:
    train, message = loop.train_and_evaluate, 'images'

    def losing(*arguments):
      images.rename(away)
      return train(*arguments)

    monkeypatch.setattr(loop, 'train_and_evaluate', losing)
  code, _, err = run_sweep(capsys, recipe, workdir, *ONE)
  assert code == 2, err
  assert message in err
  assert 'failed' not in err
  monkeypatch.undo()
  busy.close() if what == 'busy' else away.rename(images)
  code, result, _ = run_sweep(capsys, recipe, workdir, *ONE)
  assert code == 0
  assert [trial['state'] for trial in result['trials']] == ['done']


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_data_it_began_with(tmp_path, small, capsys):
  recipe, workdir = in_a_folder(tmp_path, small), tmp_path / 'sweep'
  code, result, _ = run_sweep(capsys, recipe, workdir, *ONE)
  assert code == 0
  added = tmp_path / 'images' / 'a' / 'added.png'
  shutil.copy(tmp_path / 'images' / 'b' / '0.png', added)
  code, _, err = run_sweep(capsys, recipe, workdir, *ONE)
  assert code == 2
  assert 'study.db was made with something else:\n  fingerprint of the' in err
  added.unlink()
  (tmp_path / 'images').rename(tmp_path / 'moved')
  moved = f'--config.data.path={tmp_path / "moved"}'
  code, again, _ = run_sweep(capsys, recipe, workdir, *ONE, moved)
  assert code == 0
  assert again['trials'] == result['trials']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'needs --param'),
    (['--param', 'model.drop=0..1'], 'did you mean config.model.dropout'),
    (['--param', 'model.dropout=0..1', '--monitor', 'top1'], "is 'top1'"),
    (['--param', 'model.dropout=0..1', '--trials', '0'], '--trials is 0'),
    (['--param', 'model.dropout=0..1', '--seed', '-1'], '--seed is -1'),
    (
      ['--param', 'model.dropout=0..1', '--config.data.source=folder'],
      'config.data.path',
    ),
    (
      [
        *('--param', 'model.dropout=0..1', '--config.data.source=folder'),
        '--config.data.path=/nowhere',
      ],
      'no folder at',
    ),
  ],
)
def test_it_refuses_before_it_trains(
  tmp_path, small, capsys, arguments, message
):
  recipe = commands.write_recipe(tmp_path, **small, **LENGTH)
  workdir = tmp_path / 'sweep'
  code, _, err = run_sweep(capsys, recipe, workdir, *arguments)
  assert code == 2
  assert message in err
  assert not workdir.exists()


def test_a_sweep_follows_no_links(tmp_path, small, capsys):
  recipe = commands.write_recipe(tmp_path, **small, **LENGTH)
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'sweep').mkdir()
  (tmp_path / 'sweep' / 'report').symlink_to(tmp_path / 'mine')
  code, _, err = run_sweep(capsys, recipe, tmp_path / 'sweep', *ONE)
  assert (code, 'report is a link' in err) == (2, True)
  assert list((tmp_path / 'mine').iterdir()) == []


def test_optuna_may_be_missing(tmp_path, small, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'optuna', None)
  recipe = commands.write_recipe(tmp_path, **small, **LENGTH)
  code, _, err = run_sweep(
    capsys, recipe, tmp_path / 'sweep', '--param', 'model.dropout=0..1'
  )
  assert code == 2
  assert "pip install -e '.[sweep]'" in err


# The study alone, without training.

KEY = 'optimizer.learning_rate'
TEXTS = (f'{KEY}=1e-4..1e-1:log', 'model.hidden=(8,)|(64,)|(64,8)')
SETTINGS = {'--monitor': 'eval/top1', '--mode': 'max', '--pruner': 'median'}


def open_study(folder, texts=TEXTS, config=None, data='0a', **settings):
  config = config or make_config()
  space = study_lib.parse_space(texts, config)
  made_with = study_lib.description(config, space, {'fingerprint': data})
  folder.mkdir(exist_ok=True)
  return study_lib.open_study(folder, made_with | SETTINGS | settings), space


def play(folder, worth):
  """Trials whose value is a function of their parameters, without training."""
  study, space = open_study(folder)
  while len(study.trials) < 18:
    study_lib.add_trial(study, space, 0)
    values = study_lib.values_of(study.trials[-1].params, make_config())
    value = worth(np.log10(values[KEY])) - len(values['model.hidden'])
    study.tell(len(study.trials) - 1, value)
  return [np.log10(trial.params[KEY]) for trial in study.trials]


def test_a_sweep_learns_from_its_trials(tmp_path):
  """After ten that are drawn blindly."""
  low = play(tmp_path / 'low', lambda rate: -9 * rate)
  high = play(tmp_path / 'high', lambda rate: 9 * rate)
  assert low[:10] == high[:10]
  assert np.mean(low[10:]) < np.mean(high[10:]) - 1  # a tenth, or less


def test_a_study_is_continued_with_what_it_was_made_with(tmp_path):
  open_study(tmp_path / 's')
  open_study(tmp_path / 's', texts=reversed(TEXTS))
  config = make_config()
  config.num_epochs = 3.0
  config.optimizer.momentum = 0.5
  config.optimizer.learning_rate = 0.5  # the trials have their own
  config.log_every_steps = 3  # changes no training
  texts = (TEXTS[0], 'model.hidden=(8,)|(64,)')
  with pytest.raises(UserError) as info:
    open_study(tmp_path / 's', texts, config, '2c', **{'--mode': 'min'})
  lines = str(info.value).splitlines()
  assert lines[0].endswith('study.db was made with something else:')
  assert [line.strip() for line in lines[1:-1]] == [
    '--mode: max -> min',
    '--param model.hidden: '
    "CategoricalDistribution(choices=('(8,)', '(64,)', '(64, 8)')) -> "
    "CategoricalDistribution(choices=('(8,)', '(64,)'))",
    'config.num_epochs: 90.0 -> 3.0',
    'config.optimizer.momentum: 0.9 -> 0.5',
    'fingerprint of the data: 0a -> 2c',
  ]


def test_a_damaged_study_is_refused(tmp_path):
  (tmp_path / 'study.db').write_bytes(b'no database' * 100)
  with pytest.raises(UserError, match=r'study\.db is damaged'):
    open_study(tmp_path)


def test_a_folder_may_have_any_name(tmp_path):
  study, space = open_study(tmp_path / 'a b?c#d%20{e}')
  study_lib.add_trial(study, space, 0)
  assert (tmp_path / 'a b?c#d%20{e}' / 'study.db').is_file()


def draw(*texts):
  """Returns the values of every parameter in 60 trials."""
  space = study_lib.parse_space(texts, make_config())
  study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
  rows = [
    study_lib.values_of(study.ask(space).params, make_config())
    for _ in range(60)
  ]
  make_config().update_from_flattened_dict(rows[0])  # it takes their types
  return {key: [row[key] for row in rows] for key in rows[0]}


def test_ranges_have_the_type_of_their_key():
  found = draw(
    *(f'config.{KEY}=1e-4..1e-1:log', 'model.dropout=0..1'),
    *('global_batch_size=16..18', 'data.num_threads=2..8:step=3'),
    'optimizer.momentum=0..1:step=0.5',
  )
  assert all(1e-4 <= value <= 1e-1 for value in found[KEY])
  # By the logarithm about a third lies in each decade.
  assert sum(value < 1e-3 for value in found[KEY]) > 10
  assert all(isinstance(value, float) for value in found['model.dropout'])
  assert len(set(found['model.dropout'])) == 60
  assert set(found['global_batch_size']) == {16, 17, 18}
  assert set(found['data.num_threads']) == {2, 5, 8}
  assert set(found['optimizer.momentum']) == {0.0, 0.5, 1.0}


def test_choices_have_the_type_of_their_key():
  found = draw(
    *('optimizer.name=sgd|adam', 'optimizer.nesterov=True|False'),
    *('model.hidden=(256,)|(256,128)|()', 'model.dropout=0|0.5'),
  )
  assert set(found['optimizer.name']) == {'sgd', 'adam'}
  assert set(found['model.hidden']) == {(256,), (256, 128), ()}
  assert set(found['optimizer.nesterov']) == {True, False}
  assert set(map(repr, found['model.dropout'])) == {'0.0', '0.5'}


@pytest.mark.parametrize(
  ('texts', 'message'),
  [
    ('', 'needs --param'),
    (f'{KEY}=1..2 config.{KEY}=1|2', 'is given twice'),
    (KEY, 'it takes KEY=SPEC'),
    ('optimizer.learn_rate=1..2', r'did you mean config\.optimizer\.learning_'),
    ('optimizer=1..2', 'no key config.optimizer'),
    ('optimizer.b2=0.9|0.99', "b2 is 'swept', which has no effect"),
    (f'{KEY}=0.1', 'is none of LOW..HIGH'),
    (f'{KEY}=1e-1..1e-4', 'low <= high'),
    (f'{KEY}=0..1:log', r'low(=0\.0| > 0)'),
    (f'{KEY}=1..2:lin', "has '2:lin', but the key is 0.01, a finite float"),
    (f'{KEY}=1..inf', "has 'inf'"),
    (f'{KEY}=a..b', "has 'a'"),
    (f'{KEY}=0.1|fast', "has 'fast', but the key is 0.01"),
    ('global_batch_size=0.5..2', "has '0.5', but the key is 128, a finite int"),
    ('global_batch_size=16|32.5', r"has '32\.5', but the key is 128"),
    ('global_batch_size=16|True', "has 'True'"),
    ('optimizer.nesterov=0..1', r'give A\|B\|C'),
    ('optimizer.nesterov=True|1', "has '1', but the key is False"),
    ('optimizer.name=sgd|adagrad', "has 'adagrad', which is not one of"),
    ('optimizer.name=sgd|sgd', "has 'sgd' twice"),
    ('model.hidden=64..1024', r'give A\|B\|C'),
    ('model.hidden=256|512', "has '256', but the key is"),
  ],
)
def test_what_cannot_be_understood_is_refused(texts, message):
  with pytest.raises(UserError, match=message):
    study_lib.parse_space(texts.split(), make_config())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_and_continued_sweep_makes_the_same_trials(tmp_path, small):
  recipe = commands.write_recipe(tmp_path, **small, **LENGTH)

  def start(name):
    return commands.start(
      *(*SWEEP, '--config', recipe, '--workdir', tmp_path / name, '--json'),
      *('--trials', '14', '--param', f'{KEY}=1e-4..1:log'),
      *('--param', 'optimizer.name=sgd|adam', '--param', 'seed=0..1'),
    )

  def finish(name):
    process = start(name)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    for trial in result['trials']:
      del trial['workdir']
    return {key: result[key] for key in ('trials', 'best')}

  expected = finish('unbroken')
  assert len(expected['trials']) == 14  # the last four are no blind draws
  assert {'done', 'pruned'} <= {t['state'] for t in expected['trials']}
  rng, kills = random.Random(0), 0
  for trial in (0, 3, 9, 10, 12):
    process = start('killed')
    folder = tmp_path / 'killed' / f'trial_{trial:04d}'
    while process.poll() is None and not folder.exists():
      time.sleep(0.02)
    time.sleep(rng.uniform(0, 3))  # it starts, trains, saves or tells
    process.kill()
    process.communicate()
    kills += process.returncode == -signal.SIGKILL
  assert kills > 2  # the last may come when all is done
  result = finish('killed')
  assert result['trials'] == expected['trials']


def test_an_evaluation_is_reported_and_judged_once(
  tmp_path, small, capsys, monkeypatch
):
  """Also if it is made again, because checkpoints were lost in a kill."""
  recipe = commands.write_recipe(tmp_path, **small, **LENGTH)
  evaluate, judged = loop._evaluate, []

  def killed(run, live, on_evaluation):
    evaluate(run, live, on_evaluation)
    if live.step == 15:
      raise SystemExit

  monkeypatch.setattr(
    optuna.trial.Trial,
    'should_prune',
    lambda trial: judged.append(len(trial.study.trials)),
  )
  with monkeypatch.context() as patch:
    patch.setattr(loop, '_evaluate', killed)
    with pytest.raises(SystemExit):
      run_sweep(capsys, recipe, tmp_path / 'sweep', *ONE)
  shutil.rmtree(tmp_path / 'sweep' / 'trial_0000' / 'checkpoints' / '10')
  code, result, _ = run_sweep(capsys, recipe, tmp_path / 'sweep', *ONE)
  assert (code, len(judged)) == (0, 4)  # the newest is judged again
  (trial,) = result['trials']
  rows = writers.read_rows(trial['workdir'])
  tops = [row['eval/top1'] for row in rows if 'eval/top1' in row]
  assert trial['evaluations'] == tops
  assert len(tops) == 3
