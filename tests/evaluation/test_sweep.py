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
  drawn, save = {}, figures.save

  def spy(figure, path):
    drawn[path.stem] = figure
    return save(figure, path)

  monkeypatch.setattr(figures, 'save', spy)
  _, result, _ = run_sweep(capsys, *done, *SPACE, '--trials', TRIALS)
  assert result['pictures'].keys() == drawn.keys() == {'history', 'parameters'}
  for path in result['pictures'].values():
    assert matplotlib.image.imread(path).std() > 0.01
  trials = result['trials']
  values = {t['trial']: t['value'] for t in trials if t['state'] == 'done'}
  (axes,) = drawn['history'].axes
  assert axes.get_ylabel() == 'eval/loss'
  ends, best, others = axes.lines
  assert dict(zip(*ends.get_data(), strict=True)) == values
  assert list(best.get_ydata())[-1] == min(values.values())
  assert dict(zip(*others.get_data(), strict=True)) == {
    t['trial']: t['evaluations'][-1]
    for t in trials
    if t['state'] != 'done' and t['evaluations']
  }
  panels = {axes.get_xlabel(): axes for axes in drawn['parameters'].axes}
  assert panels.keys() == {'optimizer.learning_rate', 'global_batch_size'}
  for axes in panels.values():
    points = axes.collections[0].get_offsets()
    assert [y for _, y in points] == list(values.values())


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

  def dying(self, step, values, evaluated=study_lib.Watch.evaluated):
    nonlocal seen
    seen += 1
    if (seen, False) in moments:
      raise Killed
    evaluated(self, step, values)
    if (seen, True) in moments:
      raise Killed

  monkeypatch.setattr(study_lib.Watch, 'evaluated', dying)


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
  code, again, _ = run_sweep(
    capsys,
    *(done[0], tmp_path / 'sweep', '--trials', 4, '--seed', 1),
    *('--param', 'model.hidden=(7,)|(8,)', f'--config.init.workdir={other}'),
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
KEY = 'optimizer.learning_rate'
TEXTS = (f'{KEY}=1e-4..1e-1:log', 'model.hidden=(8,)|(64,)|(64,8)')
SETTINGS = {'--monitor': 'eval/top1', '--mode': 'max', '--pruner': 'median'}


def open_study(folder, texts=TEXTS, config=None, data=DATA, **settings):
  config = config or make_config()
  space = study_lib.parse_space(texts, config)
  settings = SETTINGS | {'--seed': 0} | settings
  folder.mkdir(exist_ok=True)
  made_with = study_lib.description(config, space, data, settings)
  return study_lib.open_study(folder, made_with), space


def play(folder, until, worth):
  """Trials whose value is a function of their parameters, without training."""
  study, space = open_study(folder)
  while len(study.trials) < until:
    study_lib.next_trial(study, space, 0)
    values = study_lib.values_of(study.trials[-1].params, make_config())
    value = worth(np.log10(values[KEY])) - len(values['model.hidden'])
    study.tell(len(study.trials) - 1, value)
  return [np.log10(trial.params[KEY]) for trial in study.trials]


def test_a_sweep_learns_from_its_trials(tmp_path):
  """After ten that are drawn blindly."""
  low = play(tmp_path / 'low', 18, lambda rate: -9 * rate)
  high = play(tmp_path / 'high', 18, lambda rate: 9 * rate)
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
  with pytest.raises(UserError) as info:
    open_study(
      tmp_path / 's',
      (TEXTS[0], 'model.dropout=0.1|0.2'),
      config,
      {'fingerprint': '0a', 'eval_fingerprint': '2c'},
      **{'--monitor': 'eval/loss', '--mode': 'min', '--seed': 3},
    )
  lines = str(info.value).splitlines()
  assert lines[0].endswith('study.db was made with something else:')
  assert [line.strip() for line in lines[1:-1]] == [
    '--monitor: eval/top1 -> eval/loss',
    '--mode: max -> min',
    '--seed: 0 -> 3',
    '--param model.dropout: none -> '
    'CategoricalDistribution(choices=(0.1, 0.2))',
    'eval_fingerprint of the data: 1b -> 2c',
    '--param model.hidden: '
    "CategoricalDistribution(choices=('(8,)', '(64,)', '(64, 8)')) -> none",
    'config.optimizer.momentum: 0.9 -> 0.5',
    'config.num_epochs: 90.0 -> 3.0',
  ]


def test_a_damaged_study_is_refused(tmp_path):
  (tmp_path / 'study.db').write_bytes(b'no database' * 100)
  with pytest.raises(UserError, match=r'study\.db is damaged'):
    open_study(tmp_path)


def test_a_folder_may_have_any_name(tmp_path):
  study, space = open_study(tmp_path / 'a b?c#d%20{e}')
  study_lib.next_trial(study, space, 0)
  assert (tmp_path / 'a b?c#d%20{e}' / 'study.db').is_file()


def test_an_evaluation_is_reported_and_judged_once(tmp_path):
  study, space = open_study(tmp_path / 's')
  study_lib.next_trial(study, space, 0)
  study.tell(0, 1.0)
  study_lib.next_trial(study, space, 0)
  trial = optuna.trial.Trial(study, study.trials[1]._trial_id)
  judged = []
  trial.should_prune = lambda: judged.append(trial.number)
  folder = tmp_path / 'run'
  folder.mkdir()
  watch = study_lib.Watch(trial, folder, 'eval/top1')
  for step in (10, 20):
    watch.evaluated(step, {'eval/top1': step / 100})
  assert len(judged) == 2
  # The checkpoint of step 10 was not complete when the run was killed.
  row = {'step': 10, 'eval/top1': 0.1}
  (folder / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  watch = study_lib.Watch(trial, folder, 'eval/top1')
  watch.evaluated(10, {'eval/top1': 0.1})
  assert len(judged) == 2
  watch.evaluated(20, {'eval/top1': 0.2})
  watch.evaluated(30, {'eval/top1': 0.3})
  assert len(judged) == 4
  assert study.trials[1].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}


def parse(*texts):
  return study_lib.parse_space(texts, make_config())


def draw(space, count=60):
  """Values of the parameters in some trials."""
  study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
  found = []
  for _ in range(count):
    trial = study.ask(space)
    found.append(study_lib.values_of(trial.params, make_config()))
  return found


def test_a_range_of_floats():
  space = parse('config.optimizer.learning_rate=1e-4..1e-1:log')
  found = [values['optimizer.learning_rate'] for values in draw(space)]
  assert all(1e-4 <= value <= 1e-1 for value in found)
  # By the logarithm about a third lies in each decade.
  assert sum(value < 1e-3 for value in found) > 10


def test_a_range_is_whole_where_the_key_is():
  space = parse(
    *('global_batch_size=16..18', 'model.dropout=0..1'),
    *('data.num_threads=2..8:step=3', 'optimizer.momentum=0..1:step=0.5'),
  )
  found = draw(space)
  assert {values['global_batch_size'] for values in found} == {16, 17, 18}
  assert all(isinstance(values['model.dropout'], float) for values in found)
  assert len({values['model.dropout'] for values in found}) == 60
  assert {values['data.num_threads'] for values in found} == {2, 5, 8}
  assert {values['optimizer.momentum'] for values in found} == {0.0, 0.5, 1.0}


def test_choices_have_the_type_of_their_key():
  space = parse(
    'optimizer.name=sgd|adam',
    'model.hidden=(256,)|(256,128)|()',
    'optimizer.nesterov=True|False',
    'model.dropout=0|0.5',
  )
  found = draw(space)
  assert {values['optimizer.name'] for values in found} == {'sgd', 'adam'}
  assert {v['model.hidden'] for v in found} == {(256,), (256, 128), ()}
  assert {values['optimizer.nesterov'] for values in found} == {True, False}
  dropout = {values['model.dropout'] for values in found}
  assert dropout == {0.0, 0.5}
  assert all(isinstance(value, float) for value in dropout)
  config = make_config()
  for values in found:
    config.update_from_flattened_dict(values)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('optimizer.learning_rate', 'it takes KEY=SPEC'),
    (
      'optimizer.learn_rate=1..2',
      r'no key config\.optimizer\.learn_rate; did you mean'
      r' config\.optimizer\.learning_rate',
    ),
    ('optimizer=1..2', 'no key config.optimizer'),
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
def test_what_cannot_be_understood_is_refused(text, message):
  with pytest.raises(UserError, match=message):
    parse(text)


def test_a_key_that_is_given_twice_is_refused():
  with pytest.raises(UserError, match='is given twice'):
    parse('model.dropout=0.2..0.7', 'config.model.dropout=0.1|0.2')


def test_no_key_at_all_is_refused():
  with pytest.raises(UserError, match='needs --param'):
    parse()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_trials_on_the_digits_survive_kills(tmp_path):
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
      *('--trials', '14', '--param', 'optimizer.learning_rate=1e-4..1:log'),
      *('--param', 'optimizer.name=sgd|adam', '--param', 'seed=0..1'),
    )

  process = start('unbroken')
  out, err = process.communicate(timeout=900)
  assert process.returncode == 0, err
  expected = json.loads(out.splitlines()[-1])
  assert len(expected['trials']) == 14  # the last four are no blind draws
  states = {trial['state'] for trial in expected['trials']}
  assert {'done', 'pruned'} <= states
  rng = random.Random(0)
  for trial in (0, 3, 9, 10, 12):
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
