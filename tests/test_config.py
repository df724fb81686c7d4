import ast
import inspect
import json
import pathlib
import re
import sys

import ml_collections
import pytest

from alexnet_jax import config as config_lib, validation
from alexnet_jax.config import KEYS
from alexnet_jax.errors import UserError
from alexnet_jax.models import variants
from alexnet_jax.training import optimizer, schedule
from tests.system import commands

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted((ROOT / 'configs').glob('*.py'))
FOLDER = ('folder', 'compare')


def load(recipe, *overrides):
  file = recipe if '.py' in recipe else f'{recipe}.py'
  if recipe.partition('.')[0] in FOLDER:
    overrides = ('--config.data.path=x', *overrides)
  # No pathlib: it would make one slash of two.
  return validation.load_config([f'--config={ROOT}/configs/{file}', *overrides])


def refusal(function, *arguments):
  """The message of a UserError; '' if there is none."""
  try:
    function(*arguments)
  except UserError as error:
    return str(error)
  return ''


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_documented(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  assert f'--config configs/{path.name}' in docstring
  if path.stem != 'finetune':  # of another run, see tests/interop/test_load.py
    assert load(path.stem).report


def test_every_network_has_its_recipe():
  for network in variants.VARIANTS:
    config, fields = load(f'compare.py:{network}'), variants.fields(network)
    assert config.model.channels == fields['channels']
    assert config.model.norm == fields['norm']
  assert config_lib.recipe_name('configs/compare.py:x') == 'compare_x'


def test_overrides_have_the_type_of_the_key():
  config = load(
    'folder',
    '--config.data.random_flip=true',
    '--config.report=False',
    '--config.data.scaled_decoding',
    '--config.model.hidden=(32, 16)',
    '--config.init.freeze=conv*',
    '--config.optimizer.learning_rate=1e-3',
    '--config.optimizer.momentum',
    '0',
  )
  assert config.data.random_flip is True
  assert config.report is False
  assert config.model.hidden == (32, 16)
  assert config.init.freeze == ('conv*',)
  assert config.optimizer.learning_rate == 1e-3
  assert config.optimizer.momentum == 0.0
  assert config.data.path == str(pathlib.Path('x').absolute())


@pytest.mark.parametrize(
  ('key', 'nearest'),
  [
    ('lerning_rate', 'config.optimizer.learning_rate'),
    ('optimizer.lr', 'config.optimizer.learning_rate'),
    ('wd', 'config.optimizer.weight_decay'),
    ('batch_size', 'config.global_batch_size'),
    ('data.crop_sizes', 'config.data.crop_size'),
    ('optimizer.nam', 'config.optimizer.name'),
    ('optimizer.b1', None),
    ('xyzzy', None),
  ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, nearest):
  with pytest.raises(UserError) as info:
    load('quickstart', f'--config.{key}=1')
  hint = f'; did you mean {nearest}?' if nearest else ''
  assert str(info.value) == f'there is no key config.{key}{hint}'


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (['global_batch_size=many'], "size is 'many'; it takes a whole number"),
    (['global_batch_size=0'], 'global_batch_size is 0; it must be greater'),
    (['report=maybe'], "report is 'maybe'; it takes true or false"),
    (['optimizer.learning_rate=nan'], 'learning_rate is nan'),
    (['seed=4294967296'], 'seed is 4294967296; it takes .* below 2'),
    (['data.split_seed=-1'], 'split_seed is -1; it must lie'),
    (['data.val_fraction=0'], 'val_fraction is 0.0; it must be above 0 and'),
    (['data.crop_size=41'], 'crop_size is 41.*resize_size = 40'),
    (['model.strides=(1,2)'], '2 entries for 5'),
    (['data.std_rgb=(1,2)'], 'takes three numbers above 0'),
    (['data.mean_rgb=(1,2,256)'], 'takes three levels of 255'),
    (['data.std_rgb=(1,2,3)', 'data.std=2'], 'set one of them'),
    (
      ['data.channels=3', 'data.mean_rgb=(1,)'],
      r'mean_rgb is \(1,\); it must .*channels = 3',
    ),
    (['data.channels=1', 'data.pca_lighting=1'], 'pca_lighting is 1.*colors'),
    (['schedule.name=recorded'], 'lr_multipliers'),
    (['num_steps=5'], 'num_epochs is .* and config.num_steps is 5; leave one'),
    (['num_epochs=0'], 'num_epochs is 0.0 and config.num_steps is 0; set one'),
    (['schedule.name=step'], 'set one of them, as config.schedule.name is'),
    (
      ['schedule.drop_epochs=(2,1)'],
      r'is \(2, 1\); it .* above 0, each larger',
    ),
    (['data.source=imagenet'], 'must name the folder of the imagenet set'),
    (['data.source=imagenet', 'data.val_fraction=0.3'], '0.3, which has no'),
    (['data.fold=1', 'data.folds=1'], 'folds is 1; it must be 0 or'),
    (['data.crop_ratio=(0.75,1e400)'], 'both from 0.01 to 100'),
    (['checkpoint.monitor=loss'], "monitor is 'loss'"),
    (['optimizer.name=adam'], r"'adam', not one of .*, such as optax\.adam"),
    *(
      (['optimizer.name=optax.lion', f'optimizer.arguments={text}'], message)
      for text, message in (
        ("{'b1': 1e999}", 'inf.*; it takes names and values'),
        ("(('b1', 0.9), ('b1', 0.8))", 'it takes names and values'),
      )
    ),
    (
      ['optimizer.name=optax.lion', 'optimizer.weight_decay=0.1'],
      'weight_decay is 0.1, which has no effect',
    ),
    (['loss.class_weights=(1,0)'], 'a number from 1e-6 .* or .balanced'),
  ],
)
def test_bad_values_are_refused_with_the_value(overrides, message):
  with pytest.raises(UserError, match=message):
    load('quickstart', *(f'--config.{text}' for text in overrides))


@pytest.mark.parametrize('argument', ['--nonsense', '--x=1', 'stray'])
def test_what_is_no_override_is_named(argument):
  with pytest.raises(UserError, match=f'understood: {argument};.*KEY=VALUE'):
    load('quickstart', argument)


ODD = (None, 'text', '', True, [], [1], ['a'], -1, 0, 2.5, 10**40, float('nan'))


@pytest.mark.parametrize('key', KEYS)
def test_odd_values_are_refused_by_name_or_taken(key):
  """Set by a recipe, and on the command line as text."""
  quickstart = load('quickstart')
  for value in ODD:
    config = quickstart.copy_and_resolve_references().unlock()
    with config.ignore_type():
      config.update_from_flattened_dict({key: value})
    value = config_lib.flatten(config)[key]  # () for [], 1.0 for True
    if message := refusal(validation.validate, config, [key]):
      whole = key.startswith('model.')  # lengths of lists go together
      assert f'config.{"model." if whole else key}' in message
      assert whole or repr(value) in message
    else:
      kind = type(KEYS[key].default)
      assert kind is not bool or value in (False, True)
      assert value is not None
      assert value != 10**40 or kind is float
  for value in ('text', '', -1, 10**40):
    message = refusal(load, 'quickstart', f'--config.{key}={value}')
    assert not message or f'config.{key.partition(".")[0]}' in message


@pytest.mark.parametrize(
  ('key', 'value', 'others'),
  [
    ('data.val_fraction', 0.5, {'data.folds': 3}),
    ('init.checkpoint', 'best', {}),
    ('optimizer.decay', 'kernels', {'optimizer.weight_decay': 0.0}),
    ('schedule.power', 2.0, {}),
    ('model.batch_norm_momentum', 0.5, {}),
  ],
)
def test_a_key_without_effect_is_refused(key, value, others):
  config = config_lib.make_config()
  config.update_from_flattened_dict({key: value, **others})
  with pytest.raises(UserError, match=rf'config.{key} is .* no effect'):
    validation.validate(config, [key])
  validation.validate(config)  # others may leave it there


def test_conditions_name_keys_and_values_that_there_are():
  for key in KEYS.values():
    for text in re.split(' or | and ', key.when) if key.when else ():
      name, _, values = text.partition('=')
      allowed = KEYS[name].allowed
      for value in values.split('|') if isinstance(allowed, tuple) else ():
        assert value in allowed, text


def test_a_recipe_may_leave_keys_without_effect_to_overrides():
  assert load('quickstart', '--config.schedule.name=cosine')
  message = refusal(load, 'quickstart', '--config.data.path=photos')
  assert 'no effect while config.data.source is' in message


class Recorder:
  """Notes the keys of a section that are read."""

  def __init__(self, section):
    self._section, self.seen = section, set()

  def __getattr__(self, name):
    self.seen.add(name)
    return getattr(self._section, name)


def read_with(section, name):
  """Returns the keys that have an effect with config.SECTION.name=NAME."""
  return {
    key.partition('.')[2]
    for key, home in KEYS.items()
    if key.startswith(f'{section}.')
    and (f'{section}.name=' not in home.when or name in home.when)
  }


@pytest.mark.parametrize('name', KEYS['optimizer.name'].allowed)
def test_an_optimizer_reads_the_keys_that_count_with_it(name):
  config = config_lib.make_config()
  recorder = Recorder(config.optimizer)
  config.optimizer.name = name.replace('*', 'adamw')
  optimizer.chain(recorder, 0.1)
  assert recorder.seen | {'learning_rate'} == read_with('optimizer', name)


@pytest.mark.parametrize('name', KEYS['schedule.name'].allowed)
def test_a_schedule_reads_the_keys_that_count_with_it(name):
  config = config_lib.make_config()
  config.schedule.update(name=name, patience=1)
  durations = schedule.resolve_durations(config, 1000)
  recorder = Recorder(config.schedule)
  for step in (3, durations.num_steps):
    schedule.learning_rate_at(recorder, durations, step, 0.1)
  if name == 'plateau':
    state = schedule.PlateauState(0.1)
    for value in (0.5, 0.4):
      state = schedule.update_plateau(recorder, state, value)
  elsewhere = {f'warmup_{unit}' for unit in ('epochs', 'steps')}
  elsewhere |= {
    'step': {'drop_epochs', 'drop_steps'},
    'recorded': {'lr_multipliers'},
  }.get(name, set())
  assert recorder.seen | elsewhere | {'name'} == read_with('schedule', name)


@pytest.mark.parametrize(
  'entry',
  [
    (5, 'conv1/*'),
    (5, 'conv1/*', -0.1),
    (0, 'conv1/*', 0.1),  # after epoch 1
  ],
)
def test_an_entry_that_is_no_multiplier_is_refused(entry):
  text = f'--config.schedule.lr_multipliers=((1,"*",0.5),{entry!r})'
  with pytest.raises(UserError, match=r'it takes \(epoch, pattern') as caught:
    load('quickstart', '--config.schedule.name=recorded', text)
  assert repr(entry) in str(caught.value)


BODY = 'from alexnet_jax.config import make_config\n'
BODY += 'def get_config():\n  config = make_config()\n  {}\n'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'has no function get_config'),
    ('def get_config(:', 'fails: SyntaxError'),
    *(
      (BODY.format(body), message)
      for body, message in (
        (
          'config.optimizer.learning_rates = 1; return config',
          'learning_rate?',
        ),
        ('pass', 'returns NoneType; it must return what .*make_config'),
        ('del config.seed; return config', 'has no config.seed'),
        ('raise ValueError("no such photographs")', 'recipe.py: no such photo'),
        ('config.data.path = "x"; return config', 'data.path is .* no effect'),
        ('raise SystemExit(3)', 'line 4: SystemExit: 3'),
      )
    ),
  ],
)
def test_a_recipe_that_is_wrong(tmp_path, text, message):
  path = tmp_path / 'recipe.py'
  path.write_text(text)
  with pytest.raises(UserError, match=message):
    validation.load_config([f'--config={path}'])


@pytest.mark.parametrize(
  ('recipe', 'message'),
  [
    ('quickstart.py:x', 'quickstart.py takes nothing after'),
    ('compare.py:alexnat', "no network 'alexnat'; there are .*marvin"),
    ('nowhere', r"no recipe at '.*nowhere\.py'.* names .* imagenet,"),
    ('finetune.py:gs://b/run', 'gs://b/run is no path of this machine'),
  ],
)
def test_recipes_and_what_follows_their_colon(recipe, message):
  with pytest.raises(UserError, match=message):
    load(recipe)


def test_paths_of_the_config_are_those_of_this_machine(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert load('folder', '--config.data.path=~/p').data.path == '/home/me/p'
  with pytest.raises(UserError, match='gs://b/p is no path of this machine'):
    load('folder', '--config.data.path=gs://b/p')


def test_json_is_lossless():
  text = "{'mu_dtype': 'bfloat16', 'b1': 0.95, 'betas': [1, None]}"
  config = load(
    *('quickstart', '--config.optimizer.name=optax.lion'),
    f'--config.optimizer.arguments={text}',
  )
  expected = (('b1', 0.95), ('betas', (1, None)), ('mu_dtype', 'bfloat16'))
  assert config.optimizer.arguments == expected
  config.schedule.drop_epochs = (1.5, 2.0)
  again = config_lib.from_dict(json.loads(json.dumps(config.to_dict())))
  assert config_lib.flatten(again) == config_lib.flatten(config)
  again.optimizer.arguments = (('b1', 0.9),)
  (change,) = config_lib.training_changes(again, config)
  assert change.startswith("config.optimizer.arguments: (('b1', 0.9),) -> ")


def test_a_run_reads_every_key(tmp_path, monkeypatch):
  """But those that are passed on whole, which their readers' tests cover."""
  recipe = commands.write_recipe(
    tmp_path,
    **{'num_steps': 2, 'eval_every_steps': 1, 'early_stopping__enabled': True},
    **{'init__freeze': ('conv1/*',), 'schedule__patience': 1},
    data__pca_lighting=0.1,
    log_every_steps=1,
  )
  load_config, names = validation.load_config, {}
  seen, get = set(), ml_collections.ConfigDict.__getitem__

  def loaded(arguments):
    config = load_config(arguments)
    names.update((id(section), f'{n}.') for n, section in config.items())
    names[id(config)] = ''
    return config

  def noted(section, name):
    reader = sys._getframe(1).f_code
    inside = reader.co_filename == inspect.getfile(ml_collections.ConfigDict)
    # Those that write or compare the whole config read no key.
    if reader.co_name == '__getattr__' or not (
      inside or reader.co_name == 'flatten'
    ):
      seen.add(f'{names.get(id(section))}{name}')
    return get(section, name)

  monkeypatch.setattr(validation, 'load_config', loaded)
  monkeypatch.setattr(ml_collections.ConfigDict, '__getitem__', noted)
  commands.train_here(recipe, tmp_path / 'run')
  durations = {
    f'{name}_{unit}'
    for name in config_lib.DURATIONS
    for unit in ('epochs', 'steps')
  }
  sections = 'model.', 'optimizer.', 'loss.', 'schedule.'
  whole = {key for key in KEYS if key.startswith(sections)}
  elsewhere = {'report', 'init.checkpoint', 'init.skip'}
  unread = KEYS.keys() - seen - durations - whole - elsewhere
  assert not unread
