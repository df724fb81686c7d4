import importlib.util
import itertools
import json
import mmap
import os
import sys
from typing import ClassVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import errors
from alexnet_jax import validation
from alexnet_jax.bench import peaks
from alexnet_jax.bench import step
from alexnet_jax.bench import step_agreement
from alexnet_jax.bench import step_hlo
from alexnet_jax.bench import step_layers
from alexnet_jax.bench import step_memory
from alexnet_jax.bench import step_ours
from alexnet_jax.bench import step_process
from alexnet_jax.bench import step_report
from alexnet_jax.bench import step_rounds
from alexnet_jax.bench import step_worker
from alexnet_jax.bench.__main__ import main
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from tests.some_slow import some_slow
from tests.system import commands

LRN = {
  'model__norm_layers': (1,),
  'model__strides': (2, 1),
  'model__paddings': ((1, 2), 'SAME'),
}
needs_affinity = pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='cores are bound on Linux only'
)


def load(folder, *overrides, **changes):
  recipe = commands.write_recipe(folder, **{**LRN, **changes})
  return validation.load_config([f'--config={recipe}', *overrides])


def test_dots_are_counted_as_often_as_they_run():
  """3 products of [4, 5] and [5, 5] in a loop, one of [4, 5] and [5, 2]."""

  def run(x, w, v):
    y, _ = lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, length=3)
    return y @ v

  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 5), (5, 5))]
  last = jax.ShapeDtypeStruct((5, 2), jnp.float32)
  text = jax.jit(run).lower(*shapes, last).compile().as_text()
  flops, uncounted = step_hlo.count(text)
  assert flops == 2 * (3 * 4 * 5 * 5 + 4 * 5 * 2)
  assert uncounted == []


def test_an_unknown_library_call_is_named():
  text = """HloModule m

ENTRY %main (x: f32[2,3]) -> f32[2,3] {
  %x = f32[2,3]{1,0} parameter(0)
  ROOT %y = f32[2,3]{1,0} custom-call(%x), custom_call_target="mystery"
}
"""
  assert step_hlo.count(text) == (0, ['mystery'])


@pytest.mark.parametrize(
  ('kind', 'pieces'),
  some_slow(
    itertools.product(('pmap', 'shard_map'), (0, 2)),
    quick=[('pmap', 0)],
  ),
)
def test_the_program_has_the_flops_of_the_network(tmp_path, kind, pieces):
  """What is counted in the compiled step is what the network's shapes say."""
  config = load(
    tmp_path,
    f'--config.parallel={kind}',
    f'--config.microbatch_size={pieces}',
    '--config.global_batch_size=16',
    '--config.forms=plain',  # others may compute more, or less
  )
  runner = step_ours.Runner('ours', step.make_task(config))
  facts = runner.describe()
  for what, key in (('train', 'training'), ('evaluate', 'forward')):
    compiled = runner.compiled(what)
    counted = compiled['flops'] * facts['device_count']
    assert counted == 16 * facts[f'{key}_flops_per_image']
    assert compiled['uncounted'] == []
    assert compiled['memory']['argument'] > 0


def test_a_worker_times_steps_after_one_that_it_does_not(tmp_path):
  worker = step_worker.Contender('ours')
  worker.answer({'do': 'build', 'task': step.make_task(load(tmp_path))})

  def run(what, steps):
    return worker.answer({'do': 'run', 'what': what, 'steps': steps})

  assert set(run('train', 3)) == {'first_seconds', 'seconds', 'loss'}
  assert set(run('train', 1)) == {'seconds', 'loss'}
  assert int(worker.runner.state.step) == (1 + 1 + 3) + (1 + 1)
  assert run('evaluate', 1)['loss'] > 0
  assert worker.runner.device_peak() is None
  assert worker.runner.peak() > 1e8


def test_layers_one_after_the_other_are_the_network(tmp_path):
  """With the network's weights, each layer's output is the next one's input."""
  config = load(tmp_path, '--config.model.dropout=0.0')
  layers = step_layers.trace(config, 4)
  model = build.make_model(config, 4).clone(axis_name=None)
  rng = np.random.default_rng(0)
  shape = (config.global_batch_size, *build.image_shape(config))
  images = rng.standard_normal(shape, np.float32)
  params = model.init(jax.random.key(0), images)['params']
  x = jnp.asarray(images)
  for layer in layers:
    x = x.reshape(layer.x.shape)
    x = layer.function(params.get(layer.name, {}), x, ())
    assert x.shape == layer.output.shape
  logits = model.apply({'params': params}, images)
  np.testing.assert_allclose(x, logits, rtol=1e-5, atol=1e-6)
  names = [layer.name for layer in layers]
  assert [n for n in names if n in params] == [
    *('conv1', 'conv2', 'dense1', 'head')
  ]
  assert len(names) == 4 + 3 + 1 + 2  # with ReLUs, LRN and pools


def test_layers_are_timed_with_the_networks_flops(tmp_path):
  task = step.make_task(load(tmp_path))
  runner = step_layers.Runner('ours layers', task)
  layers = runner.describe()['layers']
  seconds = runner.time(0.001)
  assert len(seconds['forward']) == len(seconds['backward']) == len(layers)
  assert min(*seconds['forward'], *seconds['backward']) > 0
  assert any(layer['kind'] == 'dropout' for layer in layers)
  facts = step_ours.Runner('ours', task).describe()
  count = task['config']['global_batch_size']
  forward = sum(layer['forward_flops'] for layer in layers)
  backward = sum(layer['backward_flops'] for layer in layers)
  assert forward == count * facts['forward_flops_per_image']
  assert forward + backward == count * facts['training_flops_per_image']


def test_tracing_leaves_the_network_as_it_was(tmp_path):
  config = load(tmp_path)
  assert len(step_layers.trace(config, 4)) == len(step_layers.trace(config, 4))


def test_layer_rows_by_hand():
  layers = [
    {
      'name': 'conv1',
      'kind': 'Conv',
      'output': [1],
      'forward_flops': 4e9,
      'backward_flops': 8e9,
    },
    {
      'name': 'relu 1',
      'kind': 'relu',
      'output': [1],
      'forward_flops': 0,
      'backward_flops': 0,
    },
  ]
  answers = [
    {'forward': [2.0, 1.0], 'backward': [4.0, 1.0]},
    {'forward': [9.0, 1.0], 'backward': [4.0, 1.0]},
    {'forward': [1.0, 1.0], 'backward': [4.0, 9.0]},
  ]
  conv, relu = step_rounds.layer_rows(layers, answers)
  assert conv['forward'] == {
    'milliseconds': 2000.0,
    'share': 0.25,
    'gflops_per_second': 2.0,
  }
  assert conv['backward']['share'] == 0.5
  assert relu['forward']['gflops_per_second'] is None


@pytest.mark.parametrize(
  ('kind', 'dtype', 'teraflops'),
  [
    ('NVIDIA H100 80GB HBM3', 'bfloat16', 989.4),
    ('NVIDIA H100 PCIe', 'bfloat16', 756.5),
    ('NVIDIA A100-SXM4-40GB', 'float32', 156.0),
    ('NVIDIA A10', 'bfloat16', 125.0),
    ('NVIDIA A10G', 'bfloat16', 70.0),
    ('NVIDIA L4', 'float32', 60.0),
    ('NVIDIA L40S', 'float32', 183.0),
    ('Tesla V100-SXM2-16GB', 'float32', 15.7),
    ('Tesla V100-PCIE-16GB', 'float32', 14.0),
  ],
)
def test_peaks_are_found_by_the_name_of_the_device(kind, dtype, teraflops):
  peak, source = peaks.of_gpu(kind, dtype)
  assert peak == pytest.approx(1e12 * teraflops)
  assert 'NVIDIA' in source


@pytest.mark.parametrize(
  ('kind', 'dtype'), [('Tesla T4', 'bfloat16'), ('GPU 9000', 'float32')]
)
def test_there_is_no_peak_of_other_devices(kind, dtype):
  assert peaks.of_gpu(kind, dtype) is None


def test_losses_have_to_agree():
  ours = {'parameters': 5, 'losses': [2.0, 1.0]}

  def said(dtype='float32', **changes):
    return step_agreement.difference(ours, {**ours, **changes}, dtype)

  assert said() == ''
  assert said(losses=[2.001, 1.0005]) == ''
  assert 'losses are 2.00000, 1.01000' in said(losses=[2.0, 1.01])
  assert said('bfloat16', losses=[2.0, 1.01]) == ''
  assert '6 parameters instead of 5' in said(parameters=6)
  assert said(losses=[2.0, float('nan')])
  flat = {'parameters': 5, 'losses': [2.0, 1.997]}
  assert 'from 2.00000 to 1.99700' in step_agreement.difference(
    flat, flat, 'float32'
  )


def test_weights_and_batch_are_read_as_they_were_written(tmp_path):
  rng = np.random.default_rng(0)
  params = {'conv1': {'kernel': rng.random((3, 3, 2, 4)), 'bias': np.ones(4)}}
  images, labels = rng.random((2, 5, 5, 3)), np.array([1, 0])
  step_agreement.write(str(tmp_path), params, images, labels)
  again, *batch = step_agreement.read(str(tmp_path))
  assert list(again) == ['conv1']
  for leaf in ('kernel', 'bias'):
    np.testing.assert_array_equal(again['conv1'][leaf], params['conv1'][leaf])
  np.testing.assert_array_equal(batch[0], images)
  np.testing.assert_array_equal(batch[1], labels)


class FakeProcess:
  """Answers at once; a step takes what `seconds` says, in turn."""

  seconds: ClassVar = {}
  asked: ClassVar = []

  def __init__(self, name, cores):
    self.name, self._runs = name, 0

  def ask(self, do, **request):
    self.asked.append((self.name, do))
    if do == 'run':
      if self.seconds[self.name] is None:
        raise step_process.ContenderError('no compiler')
      self._runs += 1
      each = self.seconds[self.name][max(0, self._runs - 2)]
      steps = request['steps']
      answer = {'seconds': each * steps, 'loss': 1.0}
      return answer | ({'first_seconds': each + 7} if self._runs == 1 else {})
    return {
      'build': {
        'platform': 'cpu',
        'device_kind': 'cpu',
        'device_count': 2,
        'parameters': 9,
        'forward_flops_per_image': 100,
        'training_flops_per_image': 300,
      },
      'check': {'losses': [1.0], 'parameters': 9},
      'peak': {'flops_per_second': 3000.0},
      'memory': {'resident_peak': 1, 'device_peak': None},
      'compiled': {'flops': 600, 'cost_analysis_flops': None, 'memory': None},
    }[do]

  def close(self):
    pass


@pytest.fixture
def fake(monkeypatch):
  monkeypatch.setattr(step_rounds, 'Process', FakeProcess)
  monkeypatch.setattr(FakeProcess, 'asked', [])
  return monkeypatch


def measure(folder, peers, rounds, check=False):
  options = step_rounds.Options(
    cores=[0],
    peers=peers,
    rounds=rounds,
    seconds=1.0,
    parts=('train',),
    layers=False,
    check=check,
  )
  config = load(folder, '--config.global_batch_size=4')
  group = {
    'network': 'n',
    'dtype': 'float32',
    'batch_size': 4,
    'tasks': {'ours pmap': step.make_task(config)},
  }
  return step_rounds.measure(group, options)


def test_ratios_are_within_rounds_and_shares_of_the_peak(tmp_path, fake):
  """The machine is half as fast in the second round: the ratio stays."""
  fake.setattr(
    FakeProcess,
    'seconds',
    {'ours pmap': [1.0, 2.0, 1.0], 'torch eager': [3.0, 6.0, 2.0]},
  )
  result = measure(tmp_path, ['torch eager'], rounds=3)
  ours, torch = result['rows']
  assert ours['seconds'] == [1.0, 2.0, 1.0]
  assert ours['milliseconds'] == {'median': 1e3, 'min': 1e3, 'max': 2e3}
  assert ours['images_per_second']['median'] == 4.0
  assert ours['ratio'] == 1.0
  assert torch['ratio'] == 3.0
  assert ours['compile_seconds'] == 7.0
  # 300 FLOP an image, 4 images a second, of 3,000.
  assert ours['share_of_peak'] == pytest.approx(0.4)
  # 600 FLOP on each of 2 devices, for 4 images.
  assert ours['compiled']['flops_per_image'] == 300
  assert 'compiled' not in torch


def test_contenders_take_turns(tmp_path, fake):
  seconds = dict.fromkeys(
    ('ours pmap', 'torch eager', 'keras plain'), [1.0] * 9
  )
  fake.setattr(FakeProcess, 'seconds', seconds)
  measure(tmp_path, ['torch eager', 'keras plain'], rounds=3)
  ran = [name.split()[0] for name, do in FakeProcess.asked if do == 'run']
  assert [ran[i : i + 3] for i in range(0, 12, 3)] == [
    ['ours', 'torch', 'keras'],  # which compiles
    ['ours', 'torch', 'keras'],
    ['torch', 'keras', 'ours'],
    ['keras', 'ours', 'torch'],
  ]


def test_a_peer_that_fails_is_named_and_the_others_go_on(tmp_path, fake):
  fake.setattr(
    FakeProcess, 'seconds', {'ours pmap': [1.0] * 3, 'torch compile': None}
  )
  result = measure(tmp_path, ['torch compile'], rounds=2)
  assert [row['contender'] for row in result['rows']] == ['ours pmap']
  assert result['failed'] == [
    {'contender': 'torch compile', 'error': 'no compiler'}
  ]
  assert step.exit_code({'groups': [result]}) == errors.EXIT_FAILURE


def test_ours_must_not_fail(tmp_path, fake):
  fake.setattr(FakeProcess, 'seconds', {'ours pmap': None})
  with pytest.raises(step_process.ContenderError, match='no compiler'):
    measure(tmp_path, [], rounds=1)


def test_what_computes_something_else_is_not_measured(tmp_path, fake):
  fake.setattr(
    FakeProcess,
    'seconds',
    {'ours pmap': [1.0] * 3, 'torch eager': [1.0] * 3},
  )
  honest = FakeProcess.ask

  def ask(self, do, **request):
    answer = honest(self, do, **request)
    if do == 'check' and self.name == 'torch eager':
      answer['losses'] = [1.5]
    return answer

  fake.setattr(FakeProcess, 'ask', ask)
  result = measure(tmp_path, ['torch eager'], rounds=2, check=True)
  assert [row['contender'] for row in result['rows']] == ['ours pmap']
  assert 'does not compute the same' in result['failed'][0]['error']
  assert result['agreement'] == {'ours': [1.0], 'torch eager': [1.5]}


def test_one_peer_that_can_be_compared_is_enough(tmp_path, fake):
  seconds = {name: [1.0] * 3 for name in ('ours pmap', 'torch eager')}
  fake.setattr(FakeProcess, 'seconds', seconds | {'torch compile': None})
  result = measure(tmp_path, ['torch eager', 'torch compile'], rounds=2)
  assert len(result['failed']) == 1
  alone = measure(tmp_path, [], rounds=2)
  assert step.exit_code({'groups': [alone, result]}) == errors.EXIT_DONE


@needs_affinity
def test_the_command_fails_if_nothing_was_compared(
  tmp_path, monkeypatch, capsys
):
  ours = {'contender': 'ours pmap'}
  group = {'rows': [ours], 'failed': [{'contender': 'torch eager'}]}
  monkeypatch.setattr(step_rounds, 'measure', lambda *_: group)
  monkeypatch.setattr(step, '_peers', lambda _: ['torch eager'])
  for name in ('show_group', 'show_notes'):
    monkeypatch.setattr(step_report, name, lambda *_: None)
  recipe = commands.write_recipe(tmp_path)
  arguments = ['--config', str(recipe), '--against', 'torch', '--json']
  assert main(['step', *arguments]) == errors.EXIT_FAILURE
  assert json.loads(capsys.readouterr().out)['groups'] == [group]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--dtypes', 'float16'], 'not one of float32, bfloat16'),
    (['--parallel', 'pjit'], 'not one of pmap, shard_map'),
    (['--against', 'mxnet'], "'mxnet' is not one of torch, keras"),
    (['--networks', 'vgg'], "there is no network 'vgg'"),
    (['--seconds', '0'], '--seconds is 0'),
    (['--threads', '9999'], '--threads is 9999'),
    (['--batch_sizes', '3'], 'config.global_batch_size is 3'),
    (['--config.nonsense=1'], 'nonsense'),
  ],
)
@needs_affinity
def test_bad_arguments_are_said_plainly(tmp_path, capsys, arguments, message):
  recipe = commands.write_recipe(tmp_path)
  assert main(['step', '--config', str(recipe), *arguments]) == 2
  assert message in capsys.readouterr().err


def test_a_library_that_is_missing_is_named(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert main(['step', '--against', 'keras']) == 2
  error = capsys.readouterr().err
  assert 'keras and tensorflow cannot be imported' in error
  assert "pip install -e '.[bench]'" in error


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('optimizer.name=adam', "config.optimizer.name is 'adam'"),
    ('optimizer.decay=kernels', "config.optimizer.decay is 'kernels'"),
    ('loss.label_smoothing=0.1', 'config.loss.label_smoothing is 0.1'),
  ],
)
def test_updates_that_the_others_do_not_make_are_refused(
  tmp_path, monkeypatch, capsys, override, message
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: 'found')
  monkeypatch.setattr(step_rounds, 'measure', None)  # never gets that far
  recipe = commands.write_recipe(tmp_path)
  arguments = ['--config', str(recipe), '--against', 'torch,keras']
  assert main(['step', *arguments, f'--config.{override}']) == 2
  error = capsys.readouterr().err
  assert message in error
  assert 'compare with --config.' in error


def test_classes_are_those_of_the_data_if_they_are_known(tmp_path, capsys):
  recipe = commands.write_recipe(tmp_path)
  arguments = {
    **dict.fromkeys(('networks', 'dtypes', 'batch_sizes'), ()),
    **dict.fromkeys(('parallel', 'forms'), ()),
    'config': str(recipe),
  }

  def classes(*overrides):
    groups = step.make_groups(type('Arguments', (), arguments), overrides)
    (task,) = groups[0]['tasks'].values()
    return task['num_classes']

  known = len(build.make_source(load(tmp_path), 'train').class_names)
  assert classes() == known != 1000
  assert classes('--config.model.num_classes=17') == 17
  assert not capsys.readouterr().err
  assert classes('--config.data.source=folder', '--config.data.path=no') == 1000
  assert '1,000 classes are assumed' in capsys.readouterr().err


def test_groups_are_all_combinations(tmp_path):
  recipe = commands.write_recipe(tmp_path)
  arguments = {
    'config': str(recipe),
    'networks': ('alexnet', 'narrow_alexnet'),
    'dtypes': ('float32', 'bfloat16'),
    'batch_sizes': (4, 8),
    'parallel': ('pmap', 'shard_map'),
    'forms': (),
  }
  groups = step.make_groups(
    type('Arguments', (), arguments),
    ['--config.data.crop_size=64', '--config.data.resize_size=64'],
  )
  assert len(groups) == 8
  assert [group['batch_size'] for group in groups[:2]] == [4, 8]
  last = groups[-1]
  assert list(last['tasks']) == ['ours pmap', 'ours shard_map']
  config = last['tasks']['ours shard_map']['config']
  assert config['parallel'] == 'shard_map'
  assert config['model']['channels'] == (48, 128, 192, 192, 128)
  assert config['model']['dtype'] == 'bfloat16'
  assert config['model']['kernel_init'] == 'he'  # of the recipe
  assert config['global_batch_size'] == 8
  assert config['data']['crop_size'] == 64


@needs_affinity
def test_processes_run_on_as_many_cores_as_there_are_threads():
  own = os.sched_getaffinity(0)
  assert step_process.cores_of(1) == [min(own)]
  assert step_process.cores_of(0) == sorted(own)
  with pytest.raises(UserError, match='--threads'):
    step_process.cores_of(len(own) + 1)


@needs_affinity
def test_memory_grows_with_what_is_written():
  before = step_memory.resident_bytes('VmRSS')
  written = mmap.mmap(-1, 50_000_000)  # memory that nobody has had before
  written.write(b'1' * 50_000_000)
  after = step_memory.resident_bytes('VmRSS')
  assert 40e6 < after - before < 100e6
  assert step_memory.resident_bytes('VmHWM') >= after
  written.close()


@pytest.mark.slow
@needs_affinity
def test_the_command_measures_ours(tmp_path):
  recipe = commands.write_recipe(tmp_path, **LRN)
  code, out, err = commands.run(
    *(sys.executable, '-m', 'alexnet_jax.bench', 'step', '--json'),
    *('--config', recipe, '--parallel', 'shard_map', '--threads', 1),
    *('--forms', 'plain'),
    *('--evaluation', '--layers', '--rounds', 2, '--seconds', 0.01),
  )
  assert code == 0, err
  (group,) = json.loads(out)['groups']
  train, evaluation = group['rows']
  assert (train['part'], evaluation['part']) == ('train', 'evaluate')
  assert train['contender'] == evaluation['contender'] == 'ours shard_map'
  assert len(train['seconds']) == 2
  assert train['resident_peak'] > 50e6
  assert 0 < train['share_of_peak'] < 1
  counted = train['compiled']['flops_per_image']
  assert counted == group['training_flops_per_image']
  shares = [
    r[w]['share'] for r in group['layers'] for w in r if w[-4:] == 'ward'
  ]
  assert sum(shares) == pytest.approx(1.0)
  assert 'train step' in err
  assert 'conv1' in err


def _installed(*names):
  return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.slow
@needs_affinity
@pytest.mark.skipif(
  not _installed('torch', 'keras', 'tensorflow'), reason='of the extra bench'
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('network', ['alexnet', 'alexnet_one_tower'])
def test_the_peers_compute_the_same(tmp_path, network, dtype):
  """Not torch.compile: it takes minutes."""
  code, out, err = commands.run(
    *(sys.executable, '-m', 'alexnet_jax.bench', 'step', '--json'),
    *('--against', 'torch eager,torch channels_last,keras'),
    *('--networks', network, '--dtypes', dtype, '--batch_sizes', 4),
    *('--rounds', 1, '--seconds', 0.01, '--config.data.crop_size=96'),
    '--config.model.width_multiplier=0.1',
  )
  assert code == 0, err
  (group,) = json.loads(out)['groups']
  assert group['failed'] == []
  assert len(group['agreement']) == 5
  assert [row['contender'] for row in group['rows']] == [
    *('ours pmap', 'torch eager', 'torch channels_last'),
    *('keras plain', 'keras jit_compile'),
  ]
