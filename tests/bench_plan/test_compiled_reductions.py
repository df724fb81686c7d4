"""A schedule by hand: two gradients, and convolutions behind them."""

import pytest

from alexnet_jax.bench import compiled_counts
from alexnet_jax.bench import compiled_reductions
from tests.bench_plan.programs import program

BACK = 'jit(f)/transpose(jvp(AlexNet))'


def convolution(name, layer):
  """Of 2 x 4 x 4 x 1 x 9 x 1 FLOPs, reading 16 and 9 and writing 16 floats."""
  return (
    f'%{name} = (f32[1,4,4,1]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %w),'
    ' dim_labels=b01f_o01i->b01f,'
    ' custom_call_target="__cudnn$convBackwardInput",'
    f' metadata={{op_name="{BACK}/AlexNet._convolution_block/{layer}/conv"}}'
  )


ENTRY = f"""
  %x = f32[1,4,4,1]{{3,2,1,0}} parameter(0)
  %w = f32[1,3,3,1]{{3,2,1,0}} parameter(1)
  %g = f32[60]{{0}} parameter(2)
  %h = bf16[80]{{0}} parameter(3)
  %first = f32[60]{{0}} all-reduce-start(%g), to_apply=%add
  {convolution('c5', 'conv5')}
  %second = bf16[80]{{0}} all-reduce-start(%h), to_apply=%add
  {convolution('c1', 'conv1')}
  %done = f32[60]{{0}} all-reduce-done(%first)
  {convolution('again', 'conv1')}
  %enough = bf16[80]{{0}} all-reduce-done(%second)
  ROOT %sync = f32[60]{{0}} all-reduce(%done), to_apply=%add
"""


def test_places_and_shares():
  counts = compiled_counts.count(program(ENTRY))
  names = [kernel.name for kernel in counts.kernels]
  assert names == ['first', 'c5', 'second', 'c1', 'again', 'sync']
  first, second, sync = counts.reductions
  assert (first.num_bytes, second.num_bytes, sync.num_bytes) == (240, 160, 240)
  assert (first.dtypes, second.dtypes) == (('f32',), ('bf16',))
  # A collective is a kernel itself: it comes after those before it.
  assert (first.kernels_before, first.kernels_until) == (0, 4)
  assert (second.kernels_before, second.kernels_until) == (2, 5)
  assert (sync.kernels_before, sync.kernels_until) == (5, 5)
  assert compiled_reductions.first_backward(counts.kernels) == {
    'conv5': 1,
    'conv1': 3,
  }
  result = counts.to_json()
  assert result['reduced_bytes'] == 640
  assert result['early_share'] == {
    'conv5': pytest.approx(240 / 640),
    'conv1': pytest.approx(400 / 640),
  }
  row = result['reductions'][1]
  convolution_bytes = 4 * (16 + 9 + 16)
  total = 3 * convolution_bytes + 2 * 640
  assert row['traffic_before'] == pytest.approx(
    (2 * 240 + convolution_bytes) / total
  )
  assert row['flops_before'] == pytest.approx(1 / 3)
  assert row['flops_until'] == pytest.approx(1)
  assert row['convolutions_before'] == ['conv5']
  assert row['convolutions_until'] == ['conv5', 'conv1']


def test_a_wait_before_the_convolutions_hides_nothing():
  lines = ENTRY.splitlines()
  waiting = next(line for line in lines if 'all-reduce-done(%first)' in line)
  lines.remove(waiting)
  begin = next(i for i, line in enumerate(lines) if '%c5' in line)
  lines.insert(begin, waiting)
  counts = compiled_counts.count(program('\n'.join(lines)))
  assert counts.to_json()['early_share'] == {
    'conv5': 0.0,
    'conv1': pytest.approx(160 / 640),
  }


def test_a_loop_before_a_collective():
  loop = """
    %body (s: f32[8]) -> f32[8] {
      %s = f32[8]{0} parameter(0)
      %r = f32[8]{0} all-reduce(%s), to_apply=%add
      ROOT %n = f32[8]{0} negate(%r)
    }

    %more (s: f32[8]) -> pred[] {
      %s = f32[8]{0} parameter(0)
      ROOT %c = pred[] custom-call(%s), custom_call_target="more"
    }
  """
  entry = """
    %p = f32[8]{0} parameter(0)
    %n = f32[8]{0} negate(%p)
    %w = f32[8]{0} while(%n), condition=%more, \
      body=%body, backend_config={"known_trip_count":{"n":"3"}}
    %s = f32[8]{0} all-reduce-start(%w), to_apply=%add
    %k = f32[8]{0} negate(%w)
    ROOT %d = f32[8]{0} all-reduce-done(%s)
  """
  counts = compiled_counts.count(program(entry, loop))
  (reduction,) = counts.reductions
  assert reduction.name == 's'
  assert reduction.kernels_before == len(['n', 'c', 'r', 'n'])
  assert reduction.kernels_until == len(counts.kernels)
  times = [(k.name, k.times, k.in_entry) for k in counts.kernels]
  assert times[1:4] == [('c', 4, False), ('r', 3, False), ('n', 3, False)]
