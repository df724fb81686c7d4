"""bench step: groups, rounds, agreement and what the peers refuse."""

import contextlib
import importlib.util
import json
import sys
import types

import pytest

from alexnet_jax import errors, validation
from alexnet_jax.bench import harness, step, step_peers
from alexnet_jax.bench.__main__ import main
from alexnet_jax.models.costs import gpu_peak
from alexnet_jax.training import build
from tests.system import commands

LRN = {
  'model__norm_layers': (1,),
  'model__strides': (2, 1),
  'model__paddings': ((1, 2), 'SAME'),
}


def load(folder, *overrides, **changes):
  recipe = commands.write_recipe(folder, **{**LRN, **changes})
  return validation.load_config([f'--config={recipe}', *overrides])


def groups(recipe, *overrides, **arguments):
  given = dict.fromkeys(('networks', 'batch_sizes', 'vary'), ())
  given |= {'config': str(recipe), **arguments}
  return step.make_groups(types.SimpleNamespace(**given), overrides)


def test_losses_have_to_agree():
  ours = {'parameters': 5, 'losses': [2.0, 1.0]}

  def problem(dtype='float32', **changes):
    return step.difference(ours, {**ours, **changes}, dtype)

  assert problem() == ''
  assert problem(losses=[2.001, 1.0005]) == ''
  assert 'losses are [2.0, 1.01]' in problem(losses=[2.0, 1.01])
  assert problem('bfloat16', losses=[2.0, 1.01]) == ''
  assert '6 parameters instead of 5' in problem(parameters=6)
  assert problem(losses=[2.0, float('nan')])
  flat = {'parameters': 5, 'losses': [2.0, 1.997]}
  assert 'from 2.00000 to 1.99700' in step.difference(flat, flat, 'float32')


class FakeWorker(contextlib.AbstractContextManager):
  """Answers at once, 4 images a second; torch compile has no compiler."""

  def __init__(self, module, name, environment):
    self.name = name
    assert ('XLA_FLAGS' in environment) == (name != 'ours')

  def ask(self, method, **request):
    if self.name == 'torch compile':
      raise harness.WorkerError('no compiler')
    losses = [2.0, 1.5 if self.name == 'keras plain' else 1.0]
    return {
      'build': {
        'platform': 'gpu',
        'device_kind': 'NVIDIA A10',
        'device_count': 2,
        'parameters': 9,
        'forward_flops_per_image': 100,
        'training_flops_per_image': 300,
      },
      'check': {'losses': losses, 'parameters': 9, 'start': ()},
      'measure': 4.0,
    }[method]

  def __exit__(self, *exception):
    pass


@pytest.fixture
def measured(tmp_path, monkeypatch, capsys):
  """Returns a function that runs the command: (exit code, its only group)."""
  monkeypatch.setattr(harness, 'Worker', FakeWorker)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  recipe = commands.write_recipe(tmp_path, **LRN, global_batch_size=4)

  def measured(*peers, flag='--skip_check'):
    flags = f'--config {recipe} --rounds 2 --evaluation {flag}'
    against = ','.join(peers)
    code = main(['step', '--json', *flags.split(), '--against', against])
    (group,) = json.loads(capsys.readouterr().out)['groups']
    return code, group

  return measured


def test_shares_of_the_peak(measured):
  """300 or 100 FLOP an image, 4 images a second, on two GPUs."""
  peak, _ = gpu_peak('NVIDIA A10', 'float32')
  train, evaluate, *_ = measured('torch eager')[1]['rows']
  assert (train['case'], evaluate['case']) == ('train', 'evaluate')
  assert train['milliseconds'] == 1e3
  assert train['share_of_peak'] == pytest.approx(1200 / (2 * peak))
  assert evaluate['share_of_peak'] == pytest.approx(400 / (2 * peak))


def test_the_exit_code_says_if_nothing_was_compared(measured):
  code, group = measured('torch compile', 'torch eager')
  failure = {'candidate': 'torch compile', 'case': '', 'reason': 'no compiler'}
  assert (code, group['failed']) == (errors.EXIT_DONE, [failure])
  assert measured('torch compile')[0] == errors.EXIT_FAILURE


def test_what_computes_something_else_is_not_measured(measured):
  code, group = measured('keras plain', flag='')
  assert code == errors.EXIT_FAILURE
  assert {row['candidate'] for row in group['rows']} == {'ours'}
  reason = 'it computes something else: from equal weights its losses are'
  assert reason in group['failed'][0]['reason']
  assert group['agreement'] == {'ours': [2.0, 1.0], 'keras plain': [2.0, 1.5]}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--vary', 'parallel=pjit'], "config.parallel is 'pjit'"),
    (['--vary', 'parallel'], '--vary is'),
    (['--against', 'mxnet'], "'mxnet' is not one of torch, keras"),
    (['--networks', 'vgg'], "'vgg' is not one of alexnet"),
    (['--seconds', '0'], '--seconds is 0'),
    (['--config.nonsense=1'], 'nonsense'),
  ],
)
def test_bad_arguments_are_refused(tmp_path, capsys, arguments, message):
  recipe = commands.write_recipe(tmp_path)
  assert main(['step', '--config', str(recipe), *arguments]) == 2
  assert message in capsys.readouterr().err


def test_what_the_others_lack_is_refused(tmp_path):
  config = load(tmp_path).to_dict()
  step_peers.check_config(config)
  config['model']['norm'] = 'batch'
  with pytest.raises(errors.UserError, match=r'norm is .*compare with'):
    step_peers.check_config(config)


def test_classes_are_those_of_the_data_if_they_are_known(tmp_path, capsys):
  def classes(*overrides):
    ((_, found),) = groups(commands.write_recipe(tmp_path), *overrides)
    return found['ours']['model']['num_classes']

  known = len(build.make_source(load(tmp_path), 'train').class_names)
  assert classes() == known != 1000
  assert classes('--config.model.num_classes=17') == 17
  assert not capsys.readouterr().err
  assert classes('--config.data.source=folder', '--config.data.path=no') == 1000
  assert '1,000 classes are assumed' in capsys.readouterr().err


def test_groups_are_all_combinations(tmp_path):
  found = groups(
    commands.write_recipe(tmp_path),
    *('--config.data.crop_size=64', '--config.data.resize_size=64'),
    '--config.model.dropout=0.25',
    networks=('alexnet', 'narrow_alexnet'),
    batch_sizes=('4', '8'),
    vary=('parallel=pmap,shard_map', 'model.lrn_size=3,5'),
  )
  names = [network for network, _ in found]
  assert names == 2 * ['alexnet'] + 2 * ['narrow_alexnet']
  configs = found[-1][1]
  assert list(configs) == [
    f'ours parallel={parallel} model.lrn_size={size}'
    for parallel in ('pmap', 'shard_map')
    for size in (3, 5)
  ]
  config = configs['ours parallel=shard_map model.lrn_size=3']
  assert config['parallel'] == 'shard_map'
  assert config['model']['channels'] == (48, 128, 192, 192, 128)
  assert config['model']['kernel_init'] == 'he'  # of the recipe
  assert config['model']['lrn_size'] == 3  # of --vary
  assert config['model']['dropout'] == 0.25  # of the command line
  assert config['global_batch_size'] == 8
  assert config['data']['crop_size'] == 64


@pytest.mark.slow
@pytest.mark.parametrize(
  ('network', 'dtype'), [('alexnet', 'bfloat16'), ('marvin', 'float32')]
)
def test_the_peers_compute_the_same(network, dtype):
  """Those that are installed; not torch.compile, which takes minutes."""
  peers = []
  if importlib.util.find_spec('torch'):
    peers += ['torch eager', 'torch channels_last']
  if all(map(importlib.util.find_spec, ('keras', 'tensorflow'))):
    peers += ['keras plain', 'keras jit_compile']
  size = 28 if network == 'marvin' else 96
  arguments = (
    f'--networks {network} --config.model.dtype={dtype} --batch_sizes 4'
    f' --config.data.crop_size={size} --config.data.resize_size={size}'
    ' --config.model.width_multiplier=0.1 --vary parallel=shard_map'
    ' --rounds 2 --seconds 0.01 --evaluation --json'
  )
  bench = (sys.executable, '-m', 'alexnet_jax.bench', 'step')
  code, out, err = commands.run(
    *bench, *arguments.split(), '--against', ','.join(peers)
  )
  assert code == 0, err
  (group,) = json.loads(out)['groups']
  candidates = ['ours parallel=shard_map', *peers]
  assert group['failed'] == []
  assert set(group['agreement']) == set(candidates if peers else [])
  assert [(row['candidate'], row['case']) for row in group['rows']] == [
    (name, part) for name in candidates for part in ('train', 'evaluate')
  ]
  assert group['rows'][0]['share_of_peak'] is None  # of a CPU none is known
