import jax
import jax.numpy as jnp
import pytest

from alexnet_jax.bench import compiled_text
from tests.bench_plan.programs import compiled
from tests.bench_plan.programs import program

LINES = """
  %p.1 = bf16[4,8]{1,0} parameter(0), metadata={op_name="batch[\\'image\\']"}
  %two = (f32[2]{0}, /*index=1*/u8[16]{0}) custom-call(%p.1, %p.1), \
    custom_call_target="__cudnn$convForward", backend_config={"a":"(b"}
  %first = f32[2]{0} get-tuple-element(%two), index=0
  %tiled = s4[3,5]{1,0:T(8,128)(2,1)} fusion( \
    f32[2]{0} %first, /*index=1*/%p.1), kind=kLoop, calls=%inner
  ROOT %last.2 = pred[] compare(%first, %first), direction=LT
"""


def test_a_line_by_line_reading():
  read = compiled_text.parse(
    program(LINES, '%inner (a: f32[2]) -> s4[3,5] {\n  ROOT %a = f32[2] x()\n}')
  )
  p, two, first, tiled, last = read.entry
  assert [each.name for each in read.entry] == [
    *('p.1', 'two', 'first', 'tiled', 'last.2'),
  ]
  assert p.arrays == (compiled_text.Array('bf16', (4, 8)),)
  assert (p.operation, p.argument, p.operands) == ('parameter', '0', ())
  assert p.op_name == "batch['image']"
  assert [a.num_bytes for a in two.arrays] == [8, 16]
  assert (two.operands, two.target) == (('p.1', 'p.1'), '__cudnn$convForward')
  assert (first.operands, first.op_name) == (('two',), '')
  assert tiled.operands == ('first', 'p.1')
  assert tiled.num_bytes == 8  # 15 elements of half a byte
  assert read.called(tiled, 'calls').name == 'inner'
  assert read.entry.root is last
  assert [each.name for each in read.entry.users['p.1']] == ['two', 'tiled']


@pytest.mark.parametrize(
  ('shape', 'num_bytes'),
  [
    ('f32[]', 4),
    ('pred[7]{0}', 7),
    ('bf16[2,3]{1,0}', 12),
    ('f8e4m3fn[10]', 10),
    ('c64[2]', 16),
    ('u4[3]', 2),
    ('token[]', 0),
    ('s32[0,5]', 0),
    ('((f32[2], s8[3]), u64[])', 19),
  ],
)
def test_bytes_of_shapes(shape, num_bytes):
  arrays = compiled_text.arrays(shape)
  assert sum(array.num_bytes for array in arrays) == num_bytes


def test_what_xla_prints_is_read():
  x = jax.ShapeDtypeStruct((3, 5), jnp.float32)

  def function(x):
    return jax.lax.fori_loop(0, 4, lambda i, y: jnp.sin(y) + i, x).sum()

  read = compiled_text.parse(compiled(function, x))
  parameters = [e for e in read.entry if e.operation == 'parameter']
  assert [e.arrays[0].shape for e in parameters] == [(3, 5)]
  assert read.entry.root.is_root
  assert read.entry.root.arrays[0] == compiled_text.Array('f32', ())
  for computation in read.computations.values():
    for each in computation:
      assert set(each.operands) <= set(computation.instructions)


def test_a_text_that_is_none():
  with pytest.raises(ValueError, match='no entry computation'):
    compiled_text.parse('HloModule nothing\n')
