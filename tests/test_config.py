import ast
import json
import pathlib
import re

import pytest

from alexnet_jax import config as config_lib
from alexnet_jax import validation
from alexnet_jax.errors import UserError
from alexnet_jax.models import variants

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted((ROOT / 'configs').glob('*.py'))


def load(recipe, *overrides):
  file = recipe if '.py' in recipe else f'{recipe}.py'
  path = ROOT / 'configs' / file
  return validation.load_config([f'--config={path}', *overrides])


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_documented(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  assert f'--config configs/{path.name}' in docstring
  if path.stem == 'finetune':  # of another run, see tests/interop/test_load.py
    return
  # A recipe that wants a folder gets one; the others do not look.
  config = load(path.stem, '--config.data.path=x')
  assert config_lib.training_changes(config, config) == []


def test_overrides_have_the_type_of_the_key():
  config = load(
    'quickstart',
    '--config.data.random_flip=true',
    '--config.model.hidden=(32, 16)',
    '--config.optimizer.learning_rate=1e-3',
    '--config.data.path=/somewhere',
  )
  assert config.data.random_flip is True
  assert config.model.hidden == (32, 16)
  assert config.optimizer.learning_rate == 1e-3
  assert config.data.path == '/somewhere'


@pytest.mark.parametrize(
  ('override', 'nearest'),
  [
    ('--config.lerning_rate=1', 'config.optimizer.learning_rate'),
    ('--config.optimizer.lerning_rate=1', 'config.optimizer.learning_rate'),
    ('--config.data.crop_sizes=1', 'config.data.crop_size'),
    ('--config.num_epoch=1', 'config.num_epochs'),
  ],
)
def test_a_nearly_right_key_is_answered_with_the_real_one(override, nearest):
  with pytest.raises(UserError) as info:
    load('quickstart', override)
  assert f'did you mean {nearest}?' in str(info.value)
  assert override.split('=')[0].removeprefix('--') in str(info.value)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (['--config.xyzzy=1'], 'no key config.xyzzy$'),
    (['--config.global_batch_size=many'], 'global_batch_size'),
    (['--config.global_batch_size=0'], 'global_batch_size is 0'),
    (['--config.optimizer.learning_rate=-1'], 'learning_rate is -1'),
    (['--config.optimizer.learning_rate=nan'], 'learning_rate is nan'),
    (['--config.optimizer.momentum=1.0'], 'momentum is 1.0'),
    (['--config.optimizer.rate_scaling=root'], "'root', not one of .*'sqrt'"),
    (['--config.optimizer.base_batch_size=0'], 'base_batch_size is 0'),
    (['--config.microbatch_size=-1'], 'microbatch_size is -1'),
    (['--config.data.crop_size=41'], 'crop_size is 41.*resize_size = 40'),
    (['--config.data.source=web'], "source is 'web', not one of"),
    (['--config.model.norm=group'], "norm is 'group', not one of"),
    (['--config.model.strides=(1,2)'], '2 entries for 5'),
    (['--config.model.pool_layers=(1,6)'], 'count from 1 to 5'),
    (['--config.model.lrn_size=4'], 'lrn_size is 4'),
    (['--config.model.block_order=("relu",)'], '1 entries for 5'),
    (['--config.data.std_rgb=(1,2)'], 'takes three numbers above 0'),
    (['--config.data.mean_rgb=(1,2,256)'], 'takes three levels of 255'),
    (
      ['--config.init.mean_image=true', '--config.data.mean=image'],
      'init.mean_image is True; it needs config.init.workdir',
    ),
    (
      ['--config.init.mean_image=true', '--config.init.workdir=x'],
      r"--config.data.mean=image \(now 'channel'\)",
    ),
    (
      ['--config.data.mean_rgb=(1,2,3)', '--config.data.mean=image'],
      'no effect unless config.data.mean is channel',
    ),
    (
      ['--config.data.std_rgb=(1,2,3)', '--config.data.std=2'],
      'set one of them',
    ),
    (['--config.data.pca_lighting=-1'], 'must not be negative'),
    (['--config.data.pca_lighting_unit=levels'], "'levels', not one of"),
    (
      ['--config.data.pca_lighting_unit=deviation'],
      "pca_lighting_unit is 'deviation'; it has no effect while .* is 0",
    ),
    (['--config.data.pca_lighting_shrink=true'], 'no effect while'),
    (['--config.data.pca_lighting_epochs=5'], 'no effect while'),
    (['--config.schedule.name=recorded'], 'recorded needs them'),
    (
      ['--config.schedule.lr_multipliers=((1,"conv1/*",0.1),)'],
      'no other schedule reads',
    ),
    (
      [
        '--config.schedule.name=recorded',
        '--config.schedule.lr_multipliers=((5,"conv1/*",0.1),(2,"conv2/*",0.1))',
      ],
      r"\(2, 'conv2/\*', 0.1\); it takes",
    ),
    (['--config.model.pool_stride=0'], 'pool_stride is 0'),
    (['--config.model.hidden=(0,)'], r'hidden is \(0,\)'),
    (['--config.model.paddings=("same",0,0,0,0)'], "paddings is .'same'"),
    (['--config.num_steps=5'], 'num_epochs = .* and config.num_steps = 5'),
    (['--config.num_epochs=0'], 'set config.num_epochs or config.num_steps'),
    (['--config.schedule.name=step'], 'drop_epochs or'),
    (['--config.data.source=folder'], 'must name the folder'),
    (['--config.data.crop_area=(0.5,2)'], 'both from 0.0001 to 1'),
    (['--config.data.crop_ratio=(0.75,1e400)'], 'both from 0.01 to 100'),
    (['--config.data.crop=corner'], 'not one of'),
    (['--config.schedule.monitor=loss'], "monitor is 'loss'"),
    (['--config.data.val_fraction=1.0'], 'val_fraction is 1.0'),
    (['--nonsense'], 'nonsense'),
    (['stray'], 'not understood: stray'),
  ],
)
def test_bad_values_are_refused_with_the_value(overrides, message):
  with pytest.raises(UserError, match=message):
    load('quickstart', *overrides)


@pytest.mark.parametrize('key', ['num_steps', 'data.std', 'ema_decay'])
def test_none_is_no_number(key):
  config = load('quickstart')
  config.update_from_flattened_dict({key: None})
  with pytest.raises(UserError, match=f'config.{key} is None; it must'):
    validation.validate(config)


@pytest.mark.parametrize(
  'entry',
  [
    (5, 'conv1/*'),
    (5, 'conv1/*', 0.1, 1),
    (5, 'conv1/*', '.1'),
    ('5', 'conv1/*', 0.1),
    (5, 1, 0.1),
    (5, 'conv1/*', -0.1),
    'abc',
    7,
  ],
)
def test_an_entry_that_is_no_rate_is_refused(entry):
  rates = f'--config.schedule.lr_multipliers=((1,"*",0.5),{entry!r})'
  with pytest.raises(UserError, match=r'it takes \(epoch, pattern') as caught:
    load('quickstart', '--config.schedule.name=recorded', rates)
  assert repr(entry) in str(caught.value)


def test_a_missing_recipe_is_named():
  with pytest.raises(UserError, match=r'no recipe at .*nowhere\.py'):
    load('nowhere')


def test_a_key_that_a_recipe_invents_is_refused(tmp_path):
  path = tmp_path / 'recipe.py'
  path.write_text(
    'from alexnet_jax.config import make_config\n'
    'def get_config():\n'
    '  config = make_config()\n'
    '  config.optimizer.learning_rates = 0.1\n'
    '  return config\n'
  )
  with pytest.raises(UserError, match=r'config\.optimizer\.learning_rate\?'):
    validation.load_config([f'--config={path}'])


def test_json_is_lossless():
  config = load('quickstart', '--config.schedule.drop_epochs=(1.5, 2.0)')
  again = config_lib.from_dict(json.loads(config_lib.to_json(config)))
  assert config_lib.flatten(again) == config_lib.flatten(config)


def test_changes_that_matter_are_named():
  stored = load('quickstart')
  free = load(
    'quickstart',
    '--config.num_epochs=100',
    '--config.data.num_threads=7',
    '--config.parallel=shard_map',
    '--config.microbatch_size=16',
  )
  assert config_lib.training_changes(stored, free) == []
  skipping = load('quickstart', '--config.data.unreadable=skip')
  assert config_lib.training_changes(stored, skipping) == []
  assert config_lib.training_changes(skipping, stored) == [
    "config.data.unreadable: 'skip' -> 'stop'"
  ]
  other = load(
    'quickstart',
    '--config.seed=3',
    '--config.model.dropout=0.1',
    '--config.optimizer.rate_scaling=linear',
    '--config.optimizer.base_batch_size=64',
  )
  assert config_lib.training_changes(stored, other) == [
    'config.model.dropout: 0.5 -> 0.1',
    'config.optimizer.base_batch_size: 256 -> 64',
    "config.optimizer.rate_scaling: 'none' -> 'linear'",
    'config.seed: 0 -> 3',
  ]


def test_the_length_of_a_cosine_matters():
  stored = load('quickstart', '--config.schedule.name=cosine')
  longer = load(
    'quickstart', '--config.schedule.name=cosine', '--config.num_epochs=100'
  )
  (change,) = config_lib.training_changes(stored, longer)
  assert 'num_epochs' in change


def test_the_recipe_of_large_batches():
  flat = config_lib.flatten(load('imagenet_large_batch'))
  expected = {
    'data.tfds_name': 'imagenet2012',
    'global_batch_size': 8192,
    'microbatch_size': 512,
    'model.norm': 'batch',
    'model.norm_before_relu': True,
    'optimizer.name': 'lars',
    'optimizer.decay': 'kernels',
    'optimizer.rate_scaling': 'sqrt',
    'schedule.name': 'cosine',
    'schedule.warmup_epochs': 5.0,
  }
  assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize('network', variants.VARIANTS)
def test_every_network_has_its_recipe(network):
  config = load(f'compare.py:{network}', '--config.data.path=x')
  fields = variants.fields(network)
  assert config.model.channels == fields['channels']
  assert config.model.norm == fields['norm']
  assert (
    config_lib.recipe_name(f'configs/compare.py:{network}')
    == f'compare_{network}'
  )


def test_a_network_that_does_not_exist():
  with pytest.raises(
    UserError, match="there is no network 'alexnat'; there are"
  ):
    load('compare.py:alexnat', '--config.data.path=x')


@pytest.mark.parametrize(
  ('recipe', 'expected'),
  [
    (
      'keras_prototype',
      {
        'num_epochs': 90.0,
        'optimizer.name': 'sgd',
        'optimizer.learning_rate': 0.01,
        'optimizer.momentum': 0.9,
        'schedule.name': 'plateau',
        'schedule.monitor': 'eval/top1',
        'schedule.mode': 'max',
        'schedule.factor': 0.1,
        'schedule.patience': 2,
        'schedule.threshold': 1e-4,
        'schedule.min_learning_rate': 1e-7,
        'early_stopping.enabled': True,
        'early_stopping.patience': 10,
        'early_stopping.restore_best': True,
        'model.norm_layers': (1, 2),
        'model.norm_before_relu': True,
        'model.batch_norm_epsilon': 1e-3,
        'data.crop_size': 224,
      },
    ),
    (
      'folder_16_classes',
      {
        'global_batch_size': 2,
        'optimizer.weight_decay': 5e-4,
        'schedule.monitor': 'eval/loss',
        'schedule.mode': 'min',
        'schedule.patience': 10,
        'schedule.min_learning_rate': 1e-6,
        'data.val_fraction': 0.1,
        'data.mean': 'channel',
        'data.random_flip': True,
        'data.brightness': 0.0,
      },
    ),
    ('folder_16_classes.py:bright', {'data.brightness': 0.2}),
    (
      'folder_28_classes',
      {
        'global_batch_size': 150,
        'data.val_fraction': 0.1,
        'model.dropout': 0.0,
      },
    ),
    (
      'marvin',
      {
        'optimizer.name': 'adam',
        'optimizer.learning_rate': 0.001,
        'optimizer.weight_decay': 0.0,
        'global_batch_size': 128,
        'num_epochs': 10.0,
        'model.hidden': (256, 256),
      },
    ),
  ],
)
def test_the_recipes_of_the_training_set_ups(recipe, expected):
  flat = config_lib.flatten(load(recipe, '--config.data.path=x'))
  assert {key: flat[key] for key in expected} == expected


def test_every_key_is_read():
  """Somewhere below the recipes, by its room and name."""
  text = '\n'.join(
    path.read_text()
    for path in (ROOT / 'alexnet_jax').rglob('*.py')
    if path.name not in ('config.py', 'validation.py')
  )
  # The keys stand above in config.py, the durations that read them below.
  config_file = ROOT / 'alexnet_jax' / 'config.py'
  text += config_file.read_text().partition('def make_config')[2]
  # These rooms are passed on whole, as keyword arguments.
  whole = ('model', 'optimizer', 'loss')
  for key in config_lib.flatten(config_lib.make_config()):
    room, _, leaf = key.rpartition('.')
    name = re.sub('_(epochs|steps)$', '', leaf)
    holder = {'': 'config', 'early_stopping': 'stopping'}.get(room, room)
    holder = rf'({holder}|options|section|plateau)'
    read = re.search(rf'\b{holder}\.{leaf}\b', text)
    resolved = name != leaf and re.search(rf"'{name}'", text)
    keyword = room in whole and re.search(rf'^ +{leaf}: ', text, re.MULTILINE)
    assert read or resolved or keyword, f'config.{key} is read nowhere'
