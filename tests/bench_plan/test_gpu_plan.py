"""The train step as XLA compiles it for GPUs that are not there.

Needs XLA's compiler for CUDA (the extra cuda12) and no GPU: pytest -m gpu_plan.
"""

import functools
import json

import pytest

from alexnet_jax import runtime
from alexnet_jax import validation
from alexnet_jax.bench import compiled_counts
from alexnet_jax.bench import compiled_reductions
from alexnet_jax.bench import compiled_text
from alexnet_jax.bench import plan_bounds
from alexnet_jax.bench import plan_step
from alexnet_jax.bench import plan_targets
from alexnet_jax.bench.__main__ import main
from alexnet_jax.errors import UserError
from tests.system import commands

pytestmark = [
  pytest.mark.gpu_plan,
  pytest.mark.skipif(
    not runtime.plugin_libraries(), reason='needs the extra cuda12'
  ),
]

BATCH = 1024
# Of the smallest activation of a convolution: conv5's, 13 x 13 x 256.
SMALLEST_ACTIVATION = BATCH * 13 * 13 * 256
PARAMETERS = 62_378_344
TWO_TOWERS = '--config.model.groups=(1, 2, 1, 2, 2)'


def load_config(*changes, recipe='imagenet'):
  return validation.load_config(
    [f'--config={commands.ROOT}/configs/{recipe}.py', *changes]
  )


@functools.cache
def compiled(*changes, target='h100', devices=1):
  """(CompiledStep, Counts) of the ImageNet recipe in bfloat16."""
  config = load_config('--config.model.dtype=bfloat16', *changes)
  step = plan_step.compile_step(
    config, plan_targets.load(target), devices, BATCH * devices
  )
  return step, compiled_counts.count(step.text)


def megabytes_per_image(counts):
  return counts.num_bytes / BATCH / 1e6


def test_the_memory_traffic_of_an_image():
  _, counts = compiled()
  assert megabytes_per_image(counts) <= 16


def test_the_bound_of_the_memory():
  step, counts = compiled()
  bounds = plan_bounds.bounds(
    counts, step, plan_targets.load('h100'), 'bfloat16'
  )
  assert bounds['images_per_second']['memory'] > 200_000


def test_the_temporaries():
  step, _ = compiled()
  assert step.temporary_bytes <= 3e9


def test_no_activation_is_kept_in_float32():
  step, _ = compiled()
  entry = compiled_text.parse(step.text).entry
  assert [
    each.name
    for each in entry
    for array in each.arrays
    if array.dtype == 'f32' and array.size >= SMALLEST_ACTIVATION
  ] == []


def test_nothing_as_large_as_an_activation_is_scattered():
  step, _ = compiled()
  program = compiled_text.parse(step.text)
  assert [
    each.name
    for computation in program.computations.values()
    for each in computation
    if each.operation in ('scatter', 'select-and-scatter')
    and each.arrays[0].size >= SMALLEST_ACTIVATION
  ] == []


def test_two_towers_take_no_more():
  (one_step, one), (two_step, two) = compiled(), compiled(TWO_TOWERS)
  assert megabytes_per_image(two) <= 1.1 * megabytes_per_image(one)
  assert two_step.temporary_bytes <= 1.1 * one_step.temporary_bytes


@pytest.mark.parametrize('target', ['h100', 'a100'])
def test_the_dense_layers_are_reduced_behind_the_convolutions(target):
  """Under way when conv5's backward pass begins, the first of all five."""
  _, counts = compiled(target=target, devices=8)
  reduced = sum(each.num_bytes for each in counts.reductions)
  # With the sums of the metrics.
  assert 0 <= reduced - 4 * PARAMETERS < 64
  assert list(compiled_reductions.first_backward(counts.kernels)) == [
    *('conv5', 'conv4', 'conv3', 'conv2', 'conv1'),
  ]
  share = compiled_reductions.early_share(counts.reductions, counts.kernels)
  assert share >= 0.85
  # They are waited for where the network is through.
  backward = [
    place
    for place, kernel in enumerate(counts.kernels)
    if kernel.direction == 'backward' and kernel.flops
  ]
  late = sum(
    each.num_bytes
    for each in counts.reductions
    if each.kernels_until > max(backward)
  )
  assert late >= 0.85 * reduced


def test_one_device_reduces_nothing():
  _, counts = compiled()
  assert counts.reductions == []


@pytest.mark.parametrize(
  ('changes', 'gflop'), [((), 6.601), ((TWO_TOWERS,), 4.136)]
)
def test_the_program_computes_what_the_network_has(changes, gflop):
  _, counts = compiled(*changes)
  flops = counts.total('flops') / BATCH / 1e9
  assert flops == pytest.approx(gflop, rel=1e-3)


def test_pieces_are_counted_as_often_as_they_are_computed():
  config = load_config(recipe='imagenet_large_batch')
  step = plan_step.compile_step(config, plan_targets.load('h100'), 8)
  counts = compiled_counts.count(step.text)
  assert counts.unknown_loops == []
  # Batches of 1,024 in two pieces of 512.
  assert {k.times for k in counts.kernels if k.flops} == {2}
  flops = counts.total('flops') / step.device_batch_size / 1e9
  assert flops == pytest.approx(6.616, rel=1e-3)


def test_the_state_is_donated():
  step, _ = compiled()
  velocity_and_parameters = 2 * 4 * PARAMETERS
  assert step.alias_bytes == pytest.approx(velocity_and_parameters, rel=1e-3)
  image = 224 * 224 * 3
  assert step.batch_bytes == BATCH * (image + 4 + 1)  # label and flip
  assert step.argument_bytes == pytest.approx(
    velocity_and_parameters + step.batch_bytes, rel=1e-3
  )


def test_the_command_prints_it(capsys):
  arguments = (
    *('plan', '--json', '--devices', '2', '--batch_search', '--largest', '3'),
    f'--config={commands.ROOT}/configs/imagenet.py',
    *('--config.global_batch_size=128', '--memory_fraction=0.1'),
  )
  assert main([*arguments]) == 0
  captured = capsys.readouterr()
  result = json.loads(captured.out)
  assert result['measured'] is False
  assert 'not times: nothing was run' in ' '.join(captured.err.split())
  counts = result['counts']
  assert len(counts['largest']) == 3
  for row in counts['largest']:
    assert row['name'] in captured.err
  assert counts['reduced_bytes'] == pytest.approx(4 * PARAMETERS, abs=64)
  assert {'memory', 'compute', 'links'} <= set(result['bounds']['seconds'])
  found = result['largest_batch']
  needed = found['compiled'][str(found['device_batch_size'])]
  available = result['memory']['available']
  assert available == int(0.1 * 84_942_979_072)
  assert 0.8 * available < needed <= available


def test_a_description_that_xla_cannot_read(tmp_path):
  source = commands.ROOT / 'alexnet_jax/bench/targets/h100.toml'
  path = tmp_path / 'mine.toml'
  path.write_text(source.read_text().replace('core_count', 'cores'))
  with pytest.raises(UserError, match='XLA cannot read the description'):
    plan_targets.devices(plan_targets.load(str(path)), 1)
