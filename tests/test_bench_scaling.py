import json
import math
import os
import pathlib
import sys

import pytest

from alexnet_jax import validation
from alexnet_jax.bench import scaling
from alexnet_jax.bench import scaling_plan
from alexnet_jax.bench import scaling_report
from alexnet_jax.bench import scaling_runs
from alexnet_jax.bench.__main__ import main
from alexnet_jax.data.loader import num_cores
from alexnet_jax.data.pixel_statistics import MEAN_FILE
from alexnet_jax.errors import UserError
from tests.system import commands

SMALL_NODES = {
  'float32_peak': 1.0,
  'bfloat16_peak': 2.0,
  'peak_share': 0.5,
  'node_size': 4,
  'node_bandwidth': 6.0,
  'network_bandwidth': 2.0,
  'latency': 0.0,
}

needs_affinity = pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='cores are bound on Linux only'
)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
  monkeypatch.chdir(commands.ROOT)


def test_a_ring_by_hand():
  """Two members swap halves twice; one member has nobody to send to."""
  assert scaling_plan.ring_seconds(8.0, 2, 4.0, 0.0) == 2.0
  assert scaling_plan.ring_seconds(8.0, 2, 4.0, 0.25) == 2.5
  assert scaling_plan.ring_seconds(8.0, 4, 4.0, 0.0) == 3.0
  assert scaling_plan.ring_seconds(8.0, 1, 4.0, 1.0) == 0.0


def test_a_ring_sends_what_a_simulated_one_does():
  """Members pass pieces on until all have the sum; bytes are counted."""
  count = 5
  members = [[10.0**i * (k + 1) for k in range(count)] for i in range(count)]
  total = [sum(column) for column in zip(*members, strict=True)]
  sent = [0] * count
  for step in range(2 * (count - 1)):
    passed = []
    for i in range(count):
      piece = (i - step) % count
      passed.append((piece, members[i][piece]))
      sent[i] += 8
    for i, (piece, value) in enumerate(passed):
      other = members[(i + 1) % count]
      other[piece] = value + (other[piece] if step < count - 1 else 0.0)
  assert members == [total] * count
  seconds = scaling_plan.ring_seconds(8 * count, count, 1.0, 0.0)
  assert sent == [seconds] * count


def test_nodes_reduce_inside_first():
  """12e9 bytes: 3 s inside; a quarter of it over three nodes: 2 s."""
  seconds = scaling_plan.reduction_seconds(12e9, 12, SMALL_NODES)
  assert seconds == pytest.approx(2 * 3 / 4 * 12 / 6 + 2 * 2 / 3 * 3 / 2)
  alone = scaling_plan.reduction_seconds(12e9, 4, SMALL_NODES)
  assert alone == pytest.approx(3.0)
  assert scaling_plan.reduction_seconds(12e9, 2, SMALL_NODES) == 2.0
  assert scaling_plan.reduction_seconds(12e9, 1, SMALL_NODES) == 0.0
  slow = {**SMALL_NODES, 'latency': 1e6}
  with_latency = scaling_plan.reduction_seconds(12e9, 12, slow)
  steps = scaling_plan.ring_steps(12, SMALL_NODES)
  assert steps == 2 * 3 + 2 * 2
  assert with_latency == pytest.approx(seconds + steps)
  with pytest.raises(UserError, match='10 is not a multiple of the 4'):
    scaling_plan.reduction_seconds(12e9, 10, SMALL_NODES)


def test_efficiency_by_hand():
  """Computing takes 6 s and 12 s, 2 s and 4 s of it forward."""
  costs = {
    'training_flops_per_image': 3e12,
    'forward_flops_per_image': 1e12,
    'reduced_bytes': 20e9,  # 5 s in a node
  }
  rows = scaling_plan.plan(costs, 'float32', (1, 4), (1, 2), SMALL_NODES)
  assert [(r['device_batch_size'], r['devices']) for r in rows] == [
    *((1, 1), (1, 4)),
    *((2, 1), (2, 4)),
  ]
  assert [r['compute_seconds'] for r in rows] == pytest.approx([6, 6, 12, 12])
  assert [r['reduction_seconds'] for r in rows] == pytest.approx([0, 5, 0, 5])
  assert [r['efficiency'] for r in rows] == pytest.approx(
    [1, 6 / 11, 1, 12 / 17]
  )
  # Backward takes 4 s, less than the reduction, and 8 s, more.
  assert [r['overlapped_efficiency'] for r in rows] == pytest.approx(
    [1, 6 / 7, 1, 1]
  )
  faster = scaling_plan.plan(costs, 'bfloat16', (1,), (1,), SMALL_NODES)
  assert faster[0]['compute_seconds'] == pytest.approx(3)


@pytest.mark.parametrize(
  ('overrides', 'parameters', 'gflop'),
  [
    ((), 62_378_344, 6.601),
    (('--config.model.groups=(1, 2, 1, 2, 2)',), 60_965_224, 4.136),
  ],
)
def test_the_costs_of_the_recipes_network(overrides, parameters, gflop):
  config = validation.load_config(['--config=configs/imagenet.py', *overrides])
  costs = scaling_plan.network(config)
  assert costs['parameters'] == parameters
  assert costs['reduced_bytes'] == 4 * parameters
  assert costs['training_flops_per_image'] / 1e9 == pytest.approx(
    gflop, abs=5e-4
  )


def plan(capsys, *arguments):
  """(result, what is printed) of the command on paper."""
  assert main(['scaling', '--plan', '--json', *arguments]) == 0
  captured = capsys.readouterr()
  return json.loads(captured.out), captured.err


def test_the_plan_says_what_it_rests_on(capsys):
  result, err = plan(capsys, '--config.model.dtype=bfloat16')
  assert result['measured'] is False
  assert 'not measurements' in err
  assert len(result['rows']) == 9
  # 128 images of 6.601 GFLOP at a quarter of 989 TFLOP/s; 7/4 of 249.5 MB at
  # 450 GB/s, and of 1,024 GPUs 127/64 of an eighth of that at 50 GB/s.
  first, last = result['rows'][0], result['rows'][2]
  compute = 128 * 6.601e9 / (0.25 * 989e12)
  assert first['compute_seconds'] == pytest.approx(compute, rel=1e-4)
  inside = 7 / 4 * 62_378_344 * 4 / 450e9
  across = 127 / 64 * 62_378_344 * 4 / 8 / 50e9
  assert first['reduction_seconds'] == pytest.approx(inside)
  assert last['devices'] == 1024
  assert last['reduction_seconds'] == pytest.approx(inside + across)
  for assumption in scaling_plan.ASSUMPTIONS:
    shown = f'| --{assumption.name} ' in err
    assert shown is (assumption.name != 'float32_peak')
  assert '268 steps' in err
  for row in result['rows']:
    assert 0 < row['efficiency'] < row['overlapped_efficiency'] <= 1


def test_flags_change_the_assumptions(capsys):
  result, err = plan(
    capsys,
    *('--devices', '2', '--device_batch_size', '4', '--peak_share', '0.5'),
    *('--float32_peak', '60', '--node_bandwidth', '1', '--latency', '3'),
  )
  (row,) = result['rows']
  assert row['compute_seconds'] == pytest.approx(4 * 6.601e9 / 30e12, rel=1e-4)
  assert row['reduction_seconds'] == pytest.approx(
    62_378_344 * 4 / 1e9 + 2 * 3e-6
  )
  assert err.count('the flag') == 4
  assert '60 TFLOP/s' in err


def test_the_document_shows_what_the_plan_prints(capsys):
  result, _ = plan(capsys, '--config.model.dtype=bfloat16')
  text = (commands.ROOT / 'launch/README.md').read_text()
  _, _, section = text.partition('\n## Scaling\n')
  assert scaling_report.plan_table(result['rows']) in section
  table = scaling_report.assumed_table(result['assumed'], 'bfloat16')
  assert table in section


def test_all_have_a_turn_in_every_round(capsys):
  calls = []

  def run(count):
    calls.append(count)
    return 100.0 * len(calls)

  rates = scaling.measure(run, (1, 2, 4), 3)
  assert calls == [1, 2, 4, 4, 2, 1, 1, 2, 4]
  assert rates == {1: [100, 600, 700], 2: [200, 500, 800], 4: [300, 400, 900]}
  assert 'round 2: 4 processes: 400 images/s' in capsys.readouterr().err


def test_summary_by_hand():
  rates = {1: [100.0, 200.0, 150.0], 2: [150.0, 360.0, 200.0]}
  one, two = scaling.summary(rates, 64)
  assert one['efficiencies'] == [1.0, 1.0, 1.0]
  assert two['efficiencies'] == pytest.approx([0.75, 0.9, 2 / 3])
  assert two['efficiency'] == pytest.approx(0.75)
  assert (two['min'], two['median'], two['max']) == (150.0, 200.0, 360.0)
  assert (one['global_batch_size'], two['global_batch_size']) == (64, 128)
  assert scaling_report.measured_table([one, two]).splitlines() == [
    '| processes | global batch | images per second |             efficiency |',
    '| --------: | -----------: | ----------------: | ---------------------: |',
    '|         1 |           64 |  150 (100 to 200) |                 100.0% |',
    '|         2 |          128 |  200 (150 to 360) | 75.0% (66.7% to 90.0%) |',
  ]


@needs_affinity
def test_cores_are_divided_evenly(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {5, 1, 2, 9, 7})
  assert scaling_runs.shares_of_cores(1) == [{1, 2, 5, 7, 9}]
  assert scaling_runs.shares_of_cores(2) == [{1, 2}, {5, 7}]
  with pytest.raises(UserError, match='6 processes need as many cores, but'):
    scaling_runs.shares_of_cores(6)
  monkeypatch.delattr(os, 'sched_setaffinity')
  with pytest.raises(UserError, match='cannot bind processes'):
    scaling_runs.shares_of_cores(1)


def stub(code):
  """A command that does this instead of training."""
  return sys.executable, '-c', f'import json, os, sys, time; {code}'


@needs_affinity
def test_every_process_has_its_own_cores(tmp_path):
  before = os.sched_getaffinity(0)
  cores = [{core} for core in sorted(before)]
  told = stub(
    'print("{}");'
    'own = [sorted(os.sched_getaffinity(0)), sys.argv[1:]];'
    'names = "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES";'
    'print(json.dumps({"own": own, "of": [os.environ[n] for n in names]}));'
    'print("[Gloo] done")'
  )
  result = scaling_runs.train(['--x'], cores, tmp_path, told)
  assert result['of'] == ['cpu', '1']
  assert os.sched_getaffinity(0) == before
  for index, share in enumerate(cores):
    line = (tmp_path / f'{index}.out').read_text().splitlines()[1]
    own, arguments = json.loads(line)['own']
    assert set(own) == share
    assert arguments[0] == '--x'
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert given['--process_index'] == str(index)
    assert given['--process_count'] == str(len(cores))
    assert given['--coordinator'].startswith('127.0.0.1:')


@needs_affinity
def test_what_went_wrong_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(scaling_runs, '_GRACE', 0.2)
  own = os.sched_getaffinity(0)
  code = (
    'failed = sys.argv[-1] == "1"; failed or time.sleep(500);'
    'print("process 1: error: no data", file=sys.stderr); sys.exit({})'
  )
  with pytest.raises(UserError, match=r'^no data$'):
    scaling_runs.train([], [own, own], tmp_path, stub(code.format(2)))
  with pytest.raises(RuntimeError, match=r'process 1 ended with 3:\n.*no'):
    scaling_runs.train([], [own, own], tmp_path, stub(code.format(3)))


def test_a_run_gets_the_batch_of_all_its_processes(tmp_path, monkeypatch):
  seen = []

  def train(arguments, cores, folder):
    seen.append((arguments, cores, (folder / MEAN_FILE).exists()))
    (folder / MEAN_FILE).write_text('mean')
    return {'images_per_second': 7.0}

  monkeypatch.setattr(scaling_runs, 'train', train)
  run = scaling_runs.Training(['--config=x'], 9, 5, [{0}, {1}, {2}], tmp_path)
  assert run(1) == run(3) == 7.0
  (one, cores_of_one, first), (three, cores_of_three, second) = seen
  assert '--config.global_batch_size=5' in one
  assert '--config.global_batch_size=15' in three
  assert '--config.num_steps=10' in three
  assert {'--json', '--config=x', '--config.report=False'} <= set(three)
  assert (cores_of_one, cores_of_three) == ([{0}], [{0}, {1}, {2}])
  assert (first, second) == (False, True)  # the mean is computed once
  assert [path.name for path in tmp_path.iterdir()] == [MEAN_FILE]


def test_the_settings_are_a_valid_config():
  keys = scaling_runs.settings(20, 48)
  overrides = [f'--config.{key}={value}' for key, value in keys.items()]
  config = validation.load_config(
    ['--config=configs/quickstart.py', *overrides]
  )
  assert config.num_steps == 21
  assert config.eval_every_steps == 21
  assert not math.fsum(
    [config.num_epochs, config.eval_every_epochs, config.save_every_epochs]
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--processes', '2'], '--processes must have a 1'),
    (['--processes', '1,2,2'], 'each number once'),
    (['--processes', '1,4096'], '4096 processes need as many cores'),
    (['--devices', '8'], '--devices goes only with --plan'),
    (['--latency', '0'], '--latency goes only with --plan'),
    (['--plan', '--rounds', '3'], '--rounds does not go with --plan'),
    (['--plan', '--devices', '12'], '12 is not a multiple of the 8'),
    (['--plan', '--peak_share', '1.5'], '--peak_share is 1.5, more than 1'),
    (['--plan', '--node_size', '0'], '--node_size is 0; it must be above 0'),
    (['--plan', '--latency', '-1'], '--latency is -1; it must not be negative'),
    (['--plan', '--node_bandwidth', 'nan'], 'is nan; it must be above 0'),
    (['--plan', '--config', 'x.py'], "no recipe at 'x.py'"),
    (['--config', 'x.py'], "no recipe at 'x.py'"),
    (['--device_batch_size', '1,2'], 'only --plan takes several'),
    (['--config.num_steps=3'], '--config.num_steps=3: set by this command'),
    (['--config.sed=3'], 'did you mean config.seed'),
    (['--steady', '3'], 'steady'),
  ],
)
def test_wrong_arguments_are_refused(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr(scaling, 'measure', None)
  assert main(['scaling', *arguments]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('numbers', ['0', 'two', '1,,2', ''])
def test_numbers_that_are_none(numbers, capsys):
  with pytest.raises(SystemExit):
    main(['scaling', '--processes', numbers])
  assert 'argument --processes' in capsys.readouterr().err


@pytest.mark.slow
@needs_affinity
@pytest.mark.skipif(num_cores() < 2, reason='needs two cores')
def test_two_processes_are_measured(tmp_path):
  recipe = commands.write_recipe(tmp_path)
  code, out, err = commands.run(
    *(sys.executable, '-m', 'alexnet_jax.bench', 'scaling', '--json'),
    *('--config', recipe, '--steps', 4, '--rounds', 1),
    *('--device_batch_size', 4),
  )
  assert code == 0, err
  result = json.loads(out)
  assert {'machine', 'versions', 'command'} <= set(result)
  assert result['measured'] is True
  one, two = result['rows']
  assert (one['global_batch_size'], two['global_batch_size']) == (4, 8)
  assert min(one['median'], two['median']) > 0
  assert two['efficiency'] == pytest.approx(two['median'] / one['median'] / 2)
  assert pathlib.Path(result['recipe']) == recipe
