import json
import random
import shutil
import signal
import sys
import time

from matplotlib import pyplot
import matplotlib.image
import numpy as np
import optuna
import PIL.Image
import pytest

from alexnet_jax import files
from alexnet_jax import main as train_main
from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import search_space
from alexnet_jax.evaluation import sweep
from alexnet_jax.evaluation import sweep_study
from alexnet_jax.evaluation import sweep_trials
from alexnet_jax.training import loop
from tests.some_slow import some_slow
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
  monkeypatch.setattr(sweep_study, '_PRUNER_STARTUP_TRIALS', 1)


@pytest.fixture(scope='module')
def done(tmp_path_factory, small):
  """(recipe, folder, result) of a sweep that nothing disturbed."""
  folder = tmp_path_factory.mktemp('done')
  recipe = commands.write_recipe(folder, **small, **LENGTH)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sweep_study, '_PRUNER_STARTUP_TRIALS', 1)
    arguments = ['--config', str(recipe), '--workdir', str(folder / 'sweep')]
    code = sweep.main([*arguments, *SPACE, '--trials', str(TRIALS)])
  assert code == 0
  return recipe, folder / 'sweep'


def trials_of(result):
  """The trials without what differs between two folders."""
  return [
    {k: v for k, v in trial.items() if k not in ('workdir', 'reason')}
    for trial in result['trials']
  ]


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
  figures = []
  with monkeypatch.context() as patch:
    patch.setattr(pyplot, 'close', figures.append)
    _, result, _ = run_sweep(capsys, *done, *SPACE, '--trials', TRIALS)
  drawn = dict(zip(result['pictures'], figures, strict=True))
  assert {'evaluations', 'history', 'slice'} <= drawn.keys()
  for name, path in result['pictures'].items():
    assert matplotlib.image.imread(path).std() > 0.01, name
    pyplot.close(drawn[name])
  trials = result['trials']
  values = {t['trial']: t['value'] for t in trials if t['state'] == 'done'}
  (axes,) = drawn['evaluations'].axes
  assert axes.get_ylabel() == 'eval/loss'
  curves = [list(line.get_ydata()) for line in axes.lines]
  for trial in trials:
    if trial['evaluations']:
      assert trial['evaluations'] in curves
  (axes,) = drawn['history'].axes
  assert axes.get_ylabel() == 'eval/loss'
  assert points(axes) == sorted(values.items())
  # The parameters side by side, over them the values.
  slices = {axes.get_xlabel(): axes for axes in drawn['slice'].axes}
  for key in ('optimizer.learning_rate', 'global_batch_size'):
    assert [y for _, y in points(slices[key])] == sorted(values.values())


def points(axes):
  """(x, y) of the dots, sorted."""
  dots = axes.collections[0]
  return sorted((x, y) for x, y in dots.get_offsets().tolist())


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


class Killed(BaseException):
  pass


def kill_at(monkeypatch, moments):
  """Ends the process, so to speak, at some evaluations: (number, reported).

  `reported` tells whether the study has learned of the evaluation.
  """
  seen = 0

  def dying(self, step, values, evaluated=sweep_trials.Watch.evaluated):
    nonlocal seen
    seen += 1
    if (seen, False) in moments:
      raise Killed
    evaluated(self, step, values)
    if (seen, True) in moments:
      raise Killed

  monkeypatch.setattr(sweep_trials.Watch, 'evaluated', dying)


@pytest.mark.slow
def test_a_killed_and_continued_sweep_makes_the_same_trials(
  done, tmp_path, capsys, monkeypatch
):
  recipe, workdir = done[0], tmp_path / 'sweep'
  _, expected, _ = run_sweep(capsys, *done, *SPACE, '--trials', TRIALS)
  kill_at(monkeypatch, {(2, False), (4, True), (7, True), (11, False)})
  ended = 0
  for count in (3, 3, 3, TRIALS, TRIALS, TRIALS):
    try:
      code, result, _ = run_sweep(
        capsys, recipe, workdir, *SPACE, '--trials', count
      )
    except Killed:
      ended += 1
      continue
    assert code == 0
    assert len(result['trials']) == count
  assert ended == 4
  assert trials_of(result) == trials_of(expected)


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
    *('--param', 'model.hidden=1..1*7..8', f'--config.init.workdir={other}'),
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
  code, again, _ = run_sweep(
    capsys,
    *(done[0], tmp_path / 'sweep', '--trials', 4, '--seed', 1),
    *('--param', 'model.hidden=1..1*7..8', f'--config.init.workdir={other}'),
  )
  assert (code, again) == (0, result)


def in_a_folder(folder, small):
  """A recipe on images of noise."""
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


@pytest.mark.parametrize(
  'what',
  some_slow(['missing', 'changed', 'busy', 'damaged'], quick=['damaged']),
)
def test_what_all_trials_would_meet_ends_the_sweep(
  tmp_path, small, capsys, monkeypatch, what
):
  """And the trial is made once it is mended."""
  recipe, workdir = in_a_folder(tmp_path, small), tmp_path / 'sweep'
  images, busy = tmp_path / 'images', None
  image = images / 'a' / '3.png'
  content = image.read_bytes()
  if what == 'busy':
    (workdir / 'trial_0000').mkdir(parents=True)
    busy = files.lock(workdir / 'trial_0000', '')
    message = 'another run is training in'
  elif what == 'damaged':
    # Found by the mean of the pixels, before the first checkpoint.
    image.write_bytes(content[: len(content) // 2])
    message = '3.png'
  else:
    train, message = loop.train_and_evaluate, 'images'

    def losing(*arguments):
      if what == 'missing':
        images.rename(tmp_path / 'away')
      else:
        image.unlink()
        raise UserError('an image of images is another')
      return train(*arguments)

    monkeypatch.setattr(loop, 'train_and_evaluate', losing)
  mean = '--config.data.mean=channel'
  code, _, err = run_sweep(capsys, recipe, workdir, *ONE, mean)
  assert code == 2, err
  assert message in err
  assert 'failed' not in err
  monkeypatch.undo()
  if what == 'busy':
    busy.close()
  elif what == 'missing':
    (tmp_path / 'away').rename(images)
  elif what == 'changed':
    image.write_bytes(content)
  else:
    return  # the mended image is other data, for which there is a new sweep
  code, result, _ = run_sweep(capsys, recipe, workdir, *ONE, mean)
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
    (['--param', 'model.dropout=1..0'], 'ends below its start'),
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


def test_optuna_may_be_missing(tmp_path, small, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'optuna', None)
  recipe = commands.write_recipe(tmp_path, **small, **LENGTH)
  code, _, err = run_sweep(
    capsys, recipe, tmp_path / 'sweep', '--param', 'model.dropout=0..1'
  )
  assert code == 2
  assert "pip install -e '.[sweep]'" in err


# The study alone, without training.

DATA = {'fingerprint': '0a', 'eval_fingerprint': '1b'}
TEXTS = ('optimizer.learning_rate=1e-4..1e-1:log', 'model.hidden=1..2*8..64')


def open_study(folder, texts=TEXTS, config=None, **changes):
  config = config or make_config()
  space = search_space.parse(texts, config)
  made_with = {'monitor': 'eval/top1', 'mode': 'max', 'pruner': 'median'}
  made_with |= {'seed': 0, 'data': DATA} | changes
  folder.mkdir(exist_ok=True)
  made_with = sweep_study.description(config, space, **made_with)
  return sweep_study.open_study(folder, made_with), space


def play(folder, until, reopen=False):
  """Trials whose value is a function of their parameters, without training."""
  study, space = open_study(folder)
  while len(study.trials) < until:
    if reopen:
      study, space = open_study(folder)
    sweep_study.next_trial(study, space, 0)
    if reopen:  # the process ended before the trial began
      study, space = open_study(folder)
    values = search_space.values(space, study.trials[-1].params)
    rate = values['optimizer.learning_rate']
    value = -((np.log10(rate) + 2) ** 2) - len(values['model.hidden'])
    if len(study.trials) == 5:
      study.tell(len(study.trials) - 1, state=optuna.trial.TrialState.FAIL)
    else:
      study.tell(len(study.trials) - 1, value)
  return [(trial.params, trial.state, trial.value) for trial in study.trials]


@pytest.mark.slow
def test_the_trials_do_not_depend_on_interruptions(tmp_path):
  """Beyond the first ten, which are drawn blindly."""
  unbroken = play(tmp_path / 'a', 14)
  play(tmp_path / 'b', 10)
  assert play(tmp_path / 'b', 14, reopen=True) == unbroken
  rates = [params['optimizer.learning_rate'] for params, _, _ in unbroken]
  assert len(set(rates)) == 14


def test_a_study_is_continued_with_what_it_was_made_with(tmp_path):
  open_study(tmp_path / 's')
  open_study(tmp_path / 's')
  open_study(tmp_path / 's', texts=reversed(TEXTS))
  config = make_config()
  config.num_epochs = 3.0
  config.optimizer.momentum = 0.5
  config.optimizer.learning_rate = 0.5  # the trials have their own
  config.log_every_steps = 3  # changes no training
  with pytest.raises(UserError) as info:
    open_study(
      tmp_path / 's',
      ('optimizer.learning_rate=1e-4..1.0:log', 'model.dropout=0.1|0.2'),
      config,
      monitor='eval/loss',
      mode='min',
      seed=3,
      data={'fingerprint': '0a', 'eval_fingerprint': '2c'},
    )
  lines = str(info.value).splitlines()
  assert lines[0].endswith('study.db was made with something else:')
  assert [line.strip() for line in lines[1:-1]] == [
    "--monitor: 'eval/top1' -> 'eval/loss'",
    "--mode: 'max' -> 'min'",
    '--seed: 0 -> 3',
    '--param model.dropout: none -> 0.1|0.2',
    '--param model.hidden: 1..2*8..64 -> none',
    '--param optimizer.learning_rate: 0.0001..0.1:log -> 0.0001..1.0:log',
    'eval_fingerprint of the data: 1b -> 2c',
    'config.optimizer.momentum: 0.9 -> 0.5',
    'config.num_epochs: 90.0 -> 3.0',
  ]


def test_a_study_that_was_killed_while_it_was_made_is_made_anew(tmp_path):
  (tmp_path / '.study.db.partial').write_bytes(b'half')
  study, _ = open_study(tmp_path)
  assert not study.trials


def test_a_damaged_study_is_refused(tmp_path):
  (tmp_path / 'study.db').write_bytes(b'no database' * 100)
  with pytest.raises(UserError, match=r'study\.db is damaged'):
    open_study(tmp_path)


def test_a_folder_may_have_any_name(tmp_path):
  study, space = open_study(tmp_path / 'a b?c#d%20{e}')
  sweep_study.next_trial(study, space, 0)
  assert (tmp_path / 'a b?c#d%20{e}' / 'study.db').is_file()


def test_an_evaluation_is_reported_and_judged_once(tmp_path):
  study, space = open_study(tmp_path / 's')
  sweep_study.next_trial(study, space, 0)
  study.tell(0, 1.0)
  sweep_study.next_trial(study, space, 0)
  trial = optuna.trial.Trial(study, study.trials[1]._trial_id)
  judged = []
  trial.should_prune = lambda: judged.append(trial.number)
  folder = tmp_path / 'run'
  folder.mkdir()
  watch = sweep_trials.Watch(trial, folder, 'eval/top1')
  for step in (10, 20):
    watch.evaluated(step, {'eval/top1': step / 100})
  assert len(judged) == 2
  # The checkpoint of step 10 was not complete when the run was killed.
  row = {'step': 10, 'eval/top1': 0.1}
  (folder / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  watch = sweep_trials.Watch(trial, folder, 'eval/top1')
  watch.evaluated(10, {'eval/top1': 0.1})
  assert len(judged) == 2
  watch.evaluated(20, {'eval/top1': 0.2})
  watch.evaluated(30, {'eval/top1': 0.3})
  assert len(judged) == 4
  assert study.trials[1].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_trials_on_the_digits_survive_kills(tmp_path):
  recipe = commands.write_recipe(
    tmp_path,
    data__source='digits',
    num_steps=24,
    eval_every_steps=6,
    global_batch_size=32,
  )

  def start(name):
    return commands.start(
      *(*SWEEP, '--config', recipe, '--workdir', tmp_path / name, '--json'),
      *('--trials', '20', '--param', 'optimizer.learning_rate=1e-4..1:log'),
      *('--param', 'optimizer.name=sgd|adam', '--param', 'seed=0..1'),
    )

  process = start('unbroken')
  out, err = process.communicate(timeout=900)
  assert process.returncode == 0, err
  expected = json.loads(out.splitlines()[-1])
  assert len(expected['trials']) == 20
  states = {trial['state'] for trial in expected['trials']}
  assert {'done', 'pruned'} <= states
  rng = random.Random(0)
  for trial in (0, 3, 9, 10, 16):
    process = start('killed')
    folder = tmp_path / 'killed' / f'trial_{trial:04d}'
    while process.poll() is None and not folder.exists():
      time.sleep(0.02)
    time.sleep(rng.uniform(0, 3))  # it starts, trains, saves or tells
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  process = start('killed')
  out, err = process.communicate(timeout=900)
  assert process.returncode == 0, err
  result = json.loads(out.splitlines()[-1])
  assert trials_of(result) == trials_of(expected)
  assert result['best']['trial'] == expected['best']['trial']
