"""bench plan without XLA's compiler for CUDA, and peaks."""

import numpy as np
import pytest

from alexnet_jax import runtime, validation
from alexnet_jax.bench import plan
from alexnet_jax.bench.__main__ import main
from alexnet_jax.errors import UserError
from alexnet_jax.models.costs import gpu_peak, GPUS
from alexnet_jax.training import build, parallel


@pytest.mark.parametrize('name', plan.DESCRIBED)
def test_descriptions_come_with_the_package(name):
  gpu = plan.load_gpu(name)
  assert name.upper() in gpu['name']
  assert all(gpu[key]['source'] for key in plan.FIGURES)
  # XLA's description says the same of memory and bandwidth.
  for key, figure in (
    ('device_memory_size', 'memory'),
    ('memory_bandwidth', 'memory_bandwidth'),
  ):
    assert f'{key}: {gpu[figure]["value"]:.0f}\n' in gpu['xla']['target']


@pytest.mark.parametrize(
  ('kind', 'dtype', 'teraflops'),
  [
    ('NVIDIA H100 80GB HBM3', 'bfloat16', 989.4),
    ('Tesla V100-PCIE-16GB', 'float32', 14.0),
    ('Tesla T4', 'bfloat16', None),
    ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'bfloat16', None),
    ('NVIDIA H100 NVL', 'bfloat16', 835.5),
    ('cpu', 'float32', None),
  ],
)
def test_peaks_are_found_by_the_name_of_the_device(kind, dtype, teraflops):
  found = gpu_peak(kind, dtype)
  assert (found and found[0] / 1e12) == teraflops
  assert not found or 'NVIDIA' in found[1]


def own_description(tmp_path, old, new):
  content = (GPUS / 'h100.toml').read_text()
  assert old in content
  path = tmp_path / 'mine.toml'
  path.write_text(content.replace(old, new))
  return str(path)


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('[link_bandwidth]', '[links]', "'link_bandwidth' is missing"),
    ('value = 450e9', 'value = nan', 'is nan bytes/s, no number of bytes/s'),
    ('unit = "bytes"', 'unit = "GB"', 'memory is .* GB, no number of bytes'),
    ('value = 450e9', 'value is 450e9', 'describes no GPU: Expected'),
  ],
)
def test_own_descriptions(tmp_path, old, new, message):
  path = own_description(tmp_path, 'value = 450e9', 'value = 32e9')
  assert plan.load_gpu(path)['link_bandwidth']['value'] == 32e9
  with pytest.raises(UserError, match=message):
    plan.load_gpu(own_description(tmp_path, old, new))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--target', 'h1000'], "--target is 'h1000': neither a100 nor h100"),
    (['--devices', '3'], '3 devices do not divide'),
    ([], "pip install -e '.[cuda12]'"),
  ],
)
def test_wrong_arguments_are_refused(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr(runtime, 'plugin_libraries', list)
  assert main(['plan', *arguments]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  'changes',
  [
    ['--config.data.random_flip=False', '--config.data.unreadable=skip'],
    [
      '--config.data.brightness=0.1',
      '--config.data.pca_lighting=0.1',
      '--config.data.channels=3',
    ],
  ],
)
def test_batches_are_those_of_training(changes):
  """Names, shapes and dtypes, as the loader makes them."""
  few = '--config.global_batch_size=4'
  config = validation.load_config(['--config=quickstart', few, *changes])
  loader = build.make_loader(config, 'train')
  mesh, color = parallel.make_mesh(), np.zeros((3, 3), np.float32)
  batch = next(build.make_train_iter(config, loader, 1, mesh, color))
  assert {n: (np.shape(a), a.dtype) for n, a in batch.items()} == {
    n: (a.shape, a.dtype) for n, a in plan.batch_structs(config).items()
  }


PROGRAM = """HloModule hand, is_scheduled=true

%sum (x: f32[], y: f32[]) -> f32[] {
  ROOT %z = f32[] add(%x, %y)
}

ENTRY %main (p: f32[8], q: bf16[2,3]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = bf16[2,3]{1,0} parameter(1)
  %f = (f32[8]{0}, pred[4]{0}) fusion(%p, %q), kind=kLoop, calls=%c
  %g = f32[8]{0} get-tuple-element(%f), index=0
  %s = f32[8]{0} all-reduce-start(%g), to_apply=%sum
  %k = (bf16[2,3]{1,0}, u8[0]{0}) custom-call(%q), custom_call_target="x"
  %d = f32[8]{0} all-reduce-done(%s)
  %r = (s32[], /*index=1*/f32[5]{0}) all-reduce(%i, %j), to_apply=%sum
  ROOT %b = f32[8]{0} bitcast(%d)
}
"""


def test_bytes_and_all_reduces_of_a_program():
  text = PROGRAM.replace('(%i, %j)', '(%g)')
  fusion, start, call, reduce = (32 + 4) + 32 + 12, 64, 12 + 12, 24 + 32
  assert plan.count(text) == {
    'bytes': fusion + start + call + reduce,
    'all_reduces': [32, 4 + 20],
  }
  assert plan.count(text.replace('bitcast(%d)', 'while(%d)'))['bytes'] is None


def test_bounds_by_hand():
  """10 bytes, 100 bfloat16 FLOPs, 2 bytes over the links a second."""
  gpu = {
    'memory_bandwidth': {'value': 10.0},
    'bfloat16_peak': {'value': 100.0},
    'link_bandwidth': {'value': 2.0},
  }
  counts = {'flops': 400.0, 'bytes': 60, 'all_reduces': [3, 5]}
  found = plan.bounds(counts, gpu, 'bfloat16', devices=2, images=40)
  # Two devices send half of the bytes twice.
  assert found['seconds'] == {'memory': 6.0, 'compute': 4.0, 'links': 4.0}
  assert found['binds'] == 'memory'
  counts['bytes'] = None
  found = plan.bounds(counts, gpu, 'bfloat16', devices=1, images=20)
  assert found['images_per_second'] == {'compute': 5.0}


def line(batch):
  return 1000 + 10 * batch


def spiked(batch):
  """One batch that needs more than larger ones."""
  return line(batch) if batch != 1984 else 50_000


@pytest.mark.parametrize(
  ('needed', 'first', 'available', 'multiple', 'expected', 'trials'),
  [
    (line, 128, 1000 + 10 * 2000, 0, 1984, 3),
    (line, 100, 1000 + 10 * 1999, 100, 1900, 3),
    (line, 128, 500, 0, 0, 2),
    (spiked, 128, 1000 + 10 * 2000, 0, 1920, 4),
  ],
)
def test_the_largest_batch(
  needed, first, available, multiple, expected, trials
):
  """Found, and compiled: whatever is reported was tried."""
  seen = []

  def compiled(batch):
    seen.append(batch)
    return needed(batch)

  found = plan.largest_batch(compiled, first, available, multiple)
  assert found['device_batch_size'] == expected
  assert list(found['compiled']) == seen
  assert len(seen) == len(set(seen)) <= trials
  assert all(batch % (multiple or 64) == 0 for batch in seen)
  if expected:
    assert found['compiled'][expected] <= available
