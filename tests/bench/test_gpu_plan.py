"""The train step as XLA compiles it for GPUs that are not there.

Needs XLA's compiler for CUDA (the extra cuda12) and no GPU: pytest -m gpu_plan.
"""

import functools
import json
import re

import pytest

from alexnet_jax import runtime, validation
from alexnet_jax.bench import plan
from alexnet_jax.bench.__main__ import main
from tests.system import commands

pytestmark = [
  pytest.mark.gpu_plan,
  pytest.mark.skipif(
    not runtime.plugin_libraries(), reason='needs the extra cuda12'
  ),
]

BATCH = 1024
PARAMETERS = 62_378_344
BACKWARD = re.compile(r'"__cudnn\$convBackward(Input|Filter)"')


@functools.cache
def compiled(target, devices):
  """The ImageNet recipe in bfloat16."""
  config = validation.load_config(
    [
      f'--config={commands.ROOT}/configs/imagenet.py',
      '--config.model.dtype=bfloat16',
      '--config.model.num_classes=1000',
      f'--config.global_batch_size={BATCH * devices}',
    ]
  )
  return plan.compile_step(config, plan.load_gpu(target), devices)


def lines_with(lines, pattern):
  return [n for n, line in enumerate(lines) if re.search(pattern, line)]


@pytest.mark.parametrize('target', plan.DESCRIBED)
def test_the_dense_layers_are_reduced_behind_the_convolutions(target):
  """Under way when the convolutions' backward pass begins, awaited after it."""
  text, _ = compiled(target, 8)
  reduced = plan.count(text)['all_reduces']
  # With the sums of the metrics.
  assert 0 <= sum(reduced) - 4 * PARAMETERS < 64
  entry = text[text.index('\nENTRY') :].splitlines()
  backward = lines_with(entry, BACKWARD)
  assert len(backward) == 9  # the images have no gradient
  starts = lines_with(entry, r' all-reduce-start\(')
  assert len(starts) == len(reduced)
  early = 0
  for line, num_bytes in zip(starts, reduced, strict=True):
    name = re.search(r'%([\w.-]+) = ', entry[line])[1]
    (done,) = lines_with(entry, rf' all-reduce-done\(%{re.escape(name)}\)')
    if line < min(backward) and done > max(backward):
      early += num_bytes
  assert early >= 0.85 * sum(reduced)


def test_one_device_reduces_nothing_and_keeps_no_more_than_it_must():
  text, memory = compiled('h100', 1)
  assert plan.count(text)['all_reduces'] == []
  velocity_and_parameters = 2 * 4 * PARAMETERS
  assert memory['alias'] == pytest.approx(velocity_and_parameters, rel=1e-3)
  image = 224 * 224 * 3
  assert memory['next_batch'] >= BATCH * (image + 4 + 1)  # label and flip
  assert memory['temp'] <= 8e9
  assert plan.count(text)['bytes'] / BATCH <= 45e6


def test_the_command_prints_it(capsys, monkeypatch):
  monkeypatch.setattr(plan, '_JAX_TAKES', 0.1)
  arguments = (
    'plan --json --devices 2 --batch_search'
    f' --config={commands.ROOT}/configs/imagenet.py'
    ' --config.model.num_classes=1000 --config.global_batch_size=128'
  )
  assert main(arguments.split()) == 0
  captured = capsys.readouterr()
  assert 'not times: nothing was run' in captured.err
  result = json.loads(captured.out)
  assert {'memory', 'compute', 'links'} == set(result['bounds']['seconds'])
  found = result['largest_batch']
  needed = found['compiled'][str(found['device_batch_size'])]
  assert 0.8 < needed / (0.1 * 84_942_979_072) <= 1
