"""Bytes by hand: f32[1000] has 4,000."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.bench import compiled_schedule
from alexnet_jax.bench import compiled_text
from alexnet_jax.bench.compiled_traffic import Traffic
from tests.bench_plan.programs import compiled
from tests.bench_plan.programs import program


def launches(text):
  return compiled_schedule.launches(compiled_text.parse(text))


def counted(entry, *computations):
  """{name: Traffic} of the kernels."""
  return {
    launch.instruction.name: launch.traffic
    for launch in launches(program(entry, *computations))
  }


def fused(body, entry, *more):
  """Traffic of the fusion `k` of an entry, whose computation has this body."""
  computation = f'%c (a: f32[1000]) -> f32[10] {{\n{body}\n}}'
  return counted(entry, computation, *more)['k']


P = '%p = f32[1000]{0} parameter(0)\n'


def test_what_only_names_things_does_nothing():
  entry = """
    %p = f32[1000]{0} parameter(0)
    %c = f32[] constant(0)
    %b = f32[10,100]{1,0} bitcast(%p)
    %t = (f32[1000]{0}, f32[]) tuple(%p, %c)
    %g = f32[1000]{0} get-tuple-element(%t), index=0
    %o = f32[1000]{0} opt-barrier(%g)
    %i = u32[] partition-id()
    ROOT %r = (f32[10,100]{1,0}) tuple(%b)
  """
  assert counted(entry) == {}


def test_operands_are_read_once_and_results_written():
  body = """
    %a = f32[1000]{0} parameter(0)
    %b = f32[1000]{0} parameter(1)
    %s = f32[1000]{0} add(%a, %b)
    %d = f32[1000]{0} multiply(%s, %a)
    %e = bf16[1000]{0} convert(%d)
    ROOT %r = (f32[1000]{0}, bf16[1000]{0}) tuple(%d, %e)
  """
  entry = """
    %p = f32[1000]{0} parameter(0)
    %q = f32[1000]{0} parameter(1)
    ROOT %k = (f32[1000]{0}, bf16[1000]{0}) fusion(%p, %q), calls=%c
  """
  assert fused(body, entry) == Traffic(8000, 6000)
  same = entry.replace('%q)', '%p)')
  assert fused(body, same) == Traffic(4000, 6000)


def test_a_parameter_that_nobody_needs_is_not_read():
  body = """
    %a = f32[1000]{0} parameter(0)
    %z = f32[] constant(0)
    ROOT %r = f32[10]{0} broadcast(%z), dimensions={}
  """
  assert fused(body, P + 'ROOT %k = f32[10]{0} fusion(%p), calls=%c') == (
    Traffic(0, 40)
  )


@pytest.mark.parametrize(
  ('body', 'read'),
  [
    # A slice, behind a bitcast, and behind element-wise operations.
    ('ROOT %r = f32[10]{0} slice(%a), slice={[0:10]}', 40),
    (
      '%b = f32[10,100]{1,0} bitcast(%a)\n'
      'ROOT %r = f32[1,10]{1,0} slice(%b), slice={[3:4], [0:10]}',
      40,
    ),
    (
      '%b = f32[1000]{0} negate(%a)\n%d = bf16[1000]{0} convert(%b)\n'
      'ROOT %r = bf16[10]{0} slice(%d), slice={[0:100:10]}',
      40,
    ),
    # Two slices; slices of more than there is; a slice and the whole.
    (
      '%x = f32[10]{0} slice(%a), slice={[0:10]}\n'
      '%y = f32[10]{0} slice(%a), slice={[10:20]}\n'
      'ROOT %r = f32[10]{0} add(%x, %y)',
      80,
    ),
    (
      '%x = f32[900]{0} slice(%a), slice={[0:900]}\n'
      '%y = f32[900]{0} slice(%a), slice={[100:1000]}\n'
      'ROOT %r = f32[900]{0} add(%x, %y)',
      4000,
    ),
    (
      '%x = f32[10]{0} slice(%a), slice={[0:10]}\n'
      '%y = f32[] reduce(%a, %a), dimensions={0}, to_apply=%add\n'
      '%z = f32[10]{0} broadcast(%y), dimensions={}\n'
      'ROOT %r = f32[10]{0} add(%x, %z)',
      4000,
    ),
    # What a window needs of a sliced operand is not the slice alone.
    (
      '%w = f32[1000]{0} reduce-window(%a, %a), to_apply=%add\n'
      'ROOT %r = f32[10]{0} slice(%w), slice={[0:10]}',
      4000,
    ),
    # A slice of what is made by padding.
    (
      '%z = f32[] constant(0)\n'
      '%w = f32[1004]{0} pad(%a, %z), padding=2_2\n'
      'ROOT %r = f32[1000]{0} slice(%w), slice={[0:1000]}',
      4000,
    ),
  ],
)
def test_slices_read_what_they_take(body, read):
  shape = body.partition('ROOT %r = ')[2].split('{')[0]
  body = f'%a = f32[1000]{{0}} parameter(0)\n{body}'
  entry = f'{P}ROOT %k = {shape}{{0}} fusion(%p), calls=%c'
  assert fused(body, entry).read == read


def test_indexing_reads_the_indices_too():
  body = """
    %a = f32[1000]{0} parameter(0)
    %i = s32[] parameter(1)
    ROOT %r = f32[10]{0} dynamic-slice(%a, %i), dynamic_slice_sizes={10}
  """
  entry = """
    %p = f32[1000]{0} parameter(0)
    %i = s32[] parameter(1)
    ROOT %k = f32[10]{0} fusion(%p, %i), calls=%c
  """
  assert fused(body, entry) == Traffic(44, 40)
  gather = body.replace('dynamic-slice(%a, %i)', 'gather(%a, %i)')
  assert fused(gather, entry) == Traffic(44, 40)


UPDATE = """
  %a = f32[1000]{0} parameter(0)
  %u = f32[10]{0} parameter(1)
  %i = s32[] parameter(2)
  %n = f32[10]{0} negate(%u)
  ROOT %r = f32[1000]{0} dynamic-update-slice(%a, %n, %i)
"""
UPDATED = """
  %p = f32[1000]{0} parameter(0)
  %u = f32[10]{0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %k = f32[1000]{0} fusion(%p, %u, %i), calls=%c
"""


def test_updates_in_place():
  assert fused(UPDATE, UPDATED) == Traffic(44, 40)
  # Of something computed the whole is written.
  computed = UPDATE.replace(
    'ROOT %r = f32[1000]{0} dynamic-update-slice(%a',
    '%b = f32[1000]{0} negate(%a)\n'
    '  ROOT %r = f32[1000]{0} dynamic-update-slice(%b',
  )
  assert fused(computed, UPDATED) == Traffic(4044, 4000)
  # So is what follows an update.
  followed = UPDATE.replace('ROOT %r', '%d') + (
    '  ROOT %e = f32[1000]{0} negate(%d)\n'
  )
  assert fused(followed, UPDATED) == Traffic(4044, 4000)
  # Another use of the operand reads it.
  both = UPDATE.replace('ROOT %r', '%d') + (
    '  %e = f32[1000]{0} negate(%a)\n'
    '  ROOT %t = (f32[1000]{0}, f32[1000]{0}) tuple(%d, %e)\n'
  )
  entry = UPDATED.replace('= f32[1000]{0} fusion', '= (f32[1000]) fusion')
  assert fused(both, entry) == Traffic(4044, 4040)
  alone = UPDATED.replace(
    'fusion(%p, %u, %i)', 'dynamic-update-slice(%p, %u, %i)'
  )
  assert counted(alone)['k'] == Traffic(44, 40)


def test_a_scatter_touches_what_it_updates():
  body = """
    %a = f32[1000]{0} parameter(0)
    %i = s32[20,1]{1,0} parameter(1)
    %u = f32[20]{0} parameter(2)
    ROOT %r = f32[1000]{0} scatter(%a, %i, %u), to_apply=%add
  """
  entry = """
    %p = f32[1000]{0} parameter(0)
    %i = s32[20,1]{1,0} parameter(1)
    %u = f32[20]{0} parameter(2)
    ROOT %k = f32[1000]{0} fusion(%p, %i, %u), calls=%c
  """
  assert fused(body, entry) == Traffic(80 + 80 + 80, 80)


def test_a_workspace_is_apart():
  entry = """
    %x = bf16[8,10,10,4]{3,2,1,0} parameter(0)
    %w = bf16[6,3,3,4]{3,2,1,0} parameter(1)
    ROOT %k = (bf16[8,8,8,6]{3,2,1,0}, u8[123]{0}) custom-call(%x, %w), \
      custom_call_target="__cudnn$convForward"
  """
  assert counted(entry)['k'] == Traffic(
    2 * (8 * 10 * 10 * 4 + 6 * 3 * 3 * 4), 2 * 8 * 8 * 8 * 6, 123
  )
  # The bytes that anybody else writes are a result.
  own = counted(entry.replace('__cudnn$convForward', 'triton_kernel_call'))
  assert own['k'].workspace == 0
  assert own['k'].written == 2 * 8 * 8 * 8 * 6 + 123


def test_pairs_count_once():
  entry = """
    %p = f32[1000]{0} parameter(0)
    %q = f32[10]{0} parameter(1)
    %s = (f32[1000]{0}, f32[10]{0}) all-reduce-start(%p, %q), to_apply=%add
    %d = (f32[1000]{0}, f32[10]{0}) all-reduce-done(%s)
    %g = (f32[10]{0}, f32[80]{0}) all-gather-start(%q), dimensions={0}
    %h = f32[80]{0} all-gather-done(%g)
    %c = (f32[10]{0}, f32[10]{0}, u32[]) copy-start(%q)
    %e = f32[10]{0} copy-done(%c)
    %t = ((f32[1000]{0}), f32[125]{0}) reduce-scatter-start(%p), to_apply=%add
    %u = f32[125]{0} reduce-scatter-done(%t)
    %v = ((f32[1000]{0}), f32[10]{0}, u32[]) fusion-start(%p), calls=%part
    ROOT %w = f32[10]{0} fusion-done(%v)
  """
  part = """
    %part (a: f32[1000]) -> f32[10] {
      %a = f32[1000]{0} parameter(0)
      ROOT %r = f32[10]{0} slice(%a), slice={[0:10]}
    }
  """
  assert counted(entry, part) == {
    's': Traffic(4040, 4040),
    'g': Traffic(40, 320),
    'c': Traffic(40, 40),
    't': Traffic(4000, 500),
    'v': Traffic(40, 40),
  }


LOOP = """
  %p = (s32[], f32[1000]{0}) parameter(0)
  %w = (s32[], f32[1000]{0}) while(%p), condition=%more, \
    body=%once, backend_config={"known_trip_count":{"n":"7"}}
  %g = f32[1000]{0} get-tuple-element(%w), index=1
  ROOT %n = f32[1000]{0} negate(%g)
"""
MORE = """
  %more (s: (s32[], f32[1000])) -> pred[] {
    %s = (s32[], f32[1000]{0}) parameter(0)
    %i = s32[] get-tuple-element(%s), index=0
    %l = s32[] constant(5)
    ROOT %c = pred[] compare(%i, %l), direction=LT
  }
"""
ONCE = """
  %once (s: (s32[], f32[1000])) -> (s32[], f32[1000]) {
    %s = (s32[], f32[1000]{0}) parameter(0)
    %i = s32[] get-tuple-element(%s), index=0
    %x = f32[1000]{0} get-tuple-element(%s), index=1
    %e = f32[1000]{0} exponential(%x)
    ROOT %t = (s32[], f32[1000]{0}) tuple(%i, %e)
  }
"""


def test_loops_count_as_often_as_they_run():
  text = program(LOOP, MORE, ONCE)
  times = {e.instruction.name: e.times for e in launches(text)}
  assert times == {'c': 8, 'e': 7, 'n': 1}
  # What XLA does not note stands in the condition.
  silent = text.replace('"known_trip_count":{"n":"7"}', '')
  assert {e.instruction.name: e.times for e in launches(silent)}['e'] == 5
  assert compiled_schedule.unknown_loops(compiled_text.parse(silent)) == []
  unknown = silent.replace('direction=LT', 'direction=NE')
  assert {e.instruction.name: e.times for e in launches(unknown)}['e'] == 1
  assert compiled_schedule.unknown_loops(compiled_text.parse(unknown)) == ['w']


def test_calls_and_branches():
  branch = (
    '%{0} (x: f32[{1}]) -> f32[] {{\n %x = f32[{1}] parameter(0)\n'
    ' ROOT %{0}k = f32[{1}] negate(%x)\n}}'
  )
  entry = """
    %p = f32[1000]{0} parameter(0)
    %i = s32[] parameter(1)
    %b = f32[] conditional(%i, %p, %p), branch_computations={%few, %many}
    %y = f32[] call(%p), to_apply=%few
    %z = ((f32[1000]), f32[], u32[]) async-start(%p), calls=%many
    ROOT %d = f32[] async-done(%z)
  """
  text = program(entry, branch.format('few', 10), branch.format('many', 50))
  assert [e.instruction.name for e in launches(text)] == [
    *('manyk', 'fewk', 'manyk'),
  ]


def test_a_chain_that_is_compiled_by_hand():
  """x, w -> tanh(x @ w).sum(): two kernels at least, and no more than three."""
  x = np.zeros((64, 128), np.float32)
  w = np.zeros((128, 32), np.float32)
  found = launches(compiled(lambda x, w: jnp.tanh(x @ w), x, w))
  product, *rest = [e for e in found if e.traffic.total > 100]
  out = 4 * 64 * 32
  assert product.traffic == Traffic(4 * (64 * 128 + 128 * 32), out)
  assert [e.traffic for e in rest] == [Traffic(out, out)]


def test_a_donated_argument_is_read_and_written():
  x = jax.ShapeDtypeStruct((1000,), jnp.float32)
  text = compiled(lambda x: 2 * x, x, donate_argnums=0)
  assert 'input_output_alias' in text
  assert sum(e.num_bytes for e in launches(text)) == 8000


def test_a_compiled_update_in_place():
  x = jax.ShapeDtypeStruct((1000,), jnp.float32)
  u = jax.ShapeDtypeStruct((10,), jnp.float32)
  i = jax.ShapeDtypeStruct((), jnp.int32)

  def function(x, u, i):
    return jax.lax.dynamic_update_slice(x, u, (i,))

  text = compiled(function, x, u, i, donate_argnums=0)
  assert sum(e.num_bytes for e in launches(text)) == pytest.approx(80, abs=16)


def test_a_compiled_slice():
  x = jax.ShapeDtypeStruct((1000, 8), jnp.float32)
  text = compiled(lambda x: jnp.exp(x[100:200]), x)
  assert sum(e.num_bytes for e in launches(text)) == 2 * 4 * 100 * 8


def test_a_compiled_loop():
  """Each of 6 turns reads a row of x and adds it to the sum."""
  x = jax.ShapeDtypeStruct((6, 1000), jnp.float32)

  def function(x):
    return jax.lax.scan(lambda y, row: (y + jnp.exp(row), None), x[0] * 0, x)[0]

  found = launches(compiled(function, x))
  turns = [e for e in found if e.times == 6 and e.traffic.total > 100]
  (turn,) = turns
  assert turn.traffic.written == 4000
  # A row, the sum, and where it is.
  assert turn.traffic.read == pytest.approx(8000, abs=16)
