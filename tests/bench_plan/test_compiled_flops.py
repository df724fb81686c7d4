"""FLOPs by hand: two for each multiply-add."""

import jax
from jax import lax
import jax.numpy as jnp
import pytest

from alexnet_jax.bench import compiled_flops
from alexnet_jax.bench import compiled_text
from tests.bench_plan.programs import compiled
from tests.bench_plan.programs import program


def total(text):
  read = compiled_text.parse(text)
  return sum(compiled_flops.flops(read, read.entry, e) for e in read.entry)


# Of a convolution of 8 images: 3 x 3, 4 to 6 channels, 10 x 10 to 5 x 5 pixels.
FORWARD = 2 * 8 * 5 * 5 * 6 * 3 * 3 * 4
INPUT = 'bf16[8,10,10,4]{3,2,1,0}'
OUTPUT = 'bf16[8,5,5,6]{3,2,1,0}'
KERNEL = 'bf16[6,3,3,4]{3,2,1,0}'


@pytest.mark.parametrize(
  ('target', 'left', 'right', 'result'),
  [
    ('convForward', INPUT, KERNEL, OUTPUT),
    ('convBiasActivationForward', INPUT, KERNEL, OUTPUT),
    ('convBackwardInput', OUTPUT, KERNEL, INPUT),
    ('convBackwardFilter', INPUT, OUTPUT, KERNEL),
  ],
)
@pytest.mark.parametrize('groups', [1, 2])
def test_each_direction_of_a_convolution(target, left, right, result, groups):
  left, right, result = (
    shape.replace('3,3,4', f'3,3,{4 // groups}')
    for shape in (left, right, result)
  )
  entry = f"""
    %x = {left} parameter(0)
    %y = {right} parameter(1)
    ROOT %k = ({result}, u8[0]{{0}}) custom-call(%x, %y), \
      window={{size=3x3 stride=2x2 pad=1_0x1_0}}, dim_labels=b01f_o01i->b01f, \
      custom_call_target="__cudnn${target}"
  """
  assert total(program(entry)) == FORWARD // groups


def test_products_of_cublas():
  entry = """
    %x = bf16[20,30]{1,0} parameter(0)
    %y = bf16[20,50]{1,0} parameter(1)
    ROOT %k = (bf16[30,50]{1,0}, s8[64]{0}) custom-call(%x, %y), \
      custom_call_target="__cublas$gemm", backend_config={ \
      "gemm_backend_config":{"dot_dimension_numbers":{ \
      "lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}}
  """
  entry = entry.replace('["0"]', '[0]')
  assert total(program(entry)) == 2 * 20 * 30 * 50
  assert total(program(entry.replace('[0]', '["0"]'))) == 2 * 20 * 30 * 50


def test_a_product_within_fusions():
  """Split in two along its depth of 40, as a batch of two products."""
  inner = """
    %inner (a: f32[2,10,20], b: f32[2,20,30]) -> f32[2,10,30] {
      %a = f32[2,10,20]{2,1,0} parameter(0)
      %b = f32[2,20,30]{2,1,0} parameter(1)
      ROOT %d = f32[2,10,30]{2,1,0} dot(%a, %b), \
        lhs_batch_dims={0}, lhs_contracting_dims={2}, \
        rhs_batch_dims={0}, rhs_contracting_dims={1}
    }
  """
  outer = """
    %outer (a: f32[2,10,20], b: f32[2,20,30]) -> f32[2,10,30] {
      %a = f32[2,10,20]{2,1,0} parameter(0)
      %b = f32[2,20,30]{2,1,0} parameter(1)
      ROOT %f = f32[2,10,30]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%inner
    }
  """
  entry = """
    %x = f32[2,10,20]{2,1,0} parameter(0)
    %y = f32[2,20,30]{2,1,0} parameter(1)
    ROOT %k = f32[2,10,30]{2,1,0} fusion(%x, %y), kind=kCustom, calls=%outer
  """
  assert total(program(entry, inner, outer)) == 2 * 10 * 40 * 30


def test_compiled_products():
  x = jax.ShapeDtypeStruct((16, 32), jnp.float32)
  w = jax.ShapeDtypeStruct((32, 64), jnp.float32)
  assert total(compiled(jnp.dot, x, w)) == 2 * 16 * 32 * 64
  text = compiled(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)), w, x)
  assert total(text) == 2 * (2 * 16 * 32 * 64)


@pytest.mark.parametrize('stride', [1, 2])
def test_compiled_convolutions(stride):
  """XLA's own, forward and both gradients: each as much as forward."""
  x = jax.ShapeDtypeStruct((2, 12, 12, 4), jnp.float32)
  w = jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32)

  def convolution(x, w):
    return lax.conv_general_dilated(
      *(x, w, (stride, stride), 'VALID'),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  pixels = (12 - 3) // stride + 1
  forward = 2 * 2 * pixels**2 * 8 * 3 * 3 * 4
  assert total(compiled(convolution, x, w)) == forward


def test_holes_of_a_dilated_input_are_no_work():
  """The input's gradient at stride 2: 3 of 4 pixels it looks at are holes."""
  entry = """
    %x = f32[2,5,5,8]{3,2,1,0} parameter(0)
    %w = f32[3,3,8,4]{3,2,1,0} parameter(1)
    ROOT %k = f32[2,12,12,4]{3,2,1,0} convolution(%x, %w), \
      window={size=3x3 pad=2_3x2_3 lhs_dilate=2x2 rhs_reversal=1x1}, \
      dim_labels=b01f_01io->b01f
  """
  full = 2 * (2 * 12 * 12 * 4) * (3 * 3 * 8)
  assert total(program(entry)) == full // 4
