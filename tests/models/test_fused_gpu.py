"""The kernels of `fused` as XLA compiles them for GPUs that are not there."""

import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from alexnet_jax import runtime
from alexnet_jax.bench import compiled_counts
from alexnet_jax.bench import plan_targets
from alexnet_jax.models import fused

pytestmark = [
  pytest.mark.gpu_plan,
  pytest.mark.skipif(
    not runtime.plugin_libraries(), reason='needs the extra cuda12'
  ),
]


def compiled(function, target, *shapes):
  """HLO of a function of arrays [(shape, dtype), ...]."""
  devices = np.array(plan_targets.devices(plan_targets.load(target), 1))
  sharding = NamedSharding(Mesh(devices, ('data',)), PartitionSpec())
  arguments = [
    jax.ShapeDtypeStruct(*each, sharding=sharding) for each in shapes
  ]
  lowered = (
    jax.jit(function).trace(*arguments).lower(lowering_platforms=('cuda',))
  )
  options = {'xla_gpu_autotune_level': 0}
  return lowered.compile(compiler_options=options).as_text()


@pytest.mark.parametrize('target', plan_targets.NAMES)
@pytest.mark.parametrize('lrn', [True, False])
def test_every_array_is_read_and_written_once(target, lrn):
  shape, pooled = (64, 27, 27, 256), (64, 13, 13, 256)
  function = fused.lrn_max_pool if lrn else fused.relu_max_pool

  def compute(x, gradient):
    y, pull = jax.vjp(function, x)
    return y, *pull(gradient)

  text = compiled(
    compute, target, (shape, jnp.bfloat16), (pooled, jnp.bfloat16)
  )
  num_bytes = compiled_counts.count(text).num_bytes
  arrays = 3 if lrn else 2  # x, its gradient and with the norm x again
  # The values and their places are written, their gradient and places read.
  expected = arrays * 2 * math.prod(shape) + 2 * (2 + 1) * math.prod(pooled)
  assert num_bytes == expected
  assert not re.search(r'\bf32\[\d', text[text.index('\nENTRY') :])
  assert 'scatter' not in text


def test_the_gradient_of_the_bias_is_small():
  shape, pooled = (64, 27, 27, 256), (64, 13, 13, 256)

  def compute(x, bias, gradient):
    return jax.vjp(fused.lrn_max_pool, x, bias)[1](gradient)

  with_bias, without = (
    compiled_counts.count(
      compiled(
        compute if has_bias else lambda x, gradient: compute(x, None, gradient),
        'h100',
        (shape, jnp.bfloat16),
        *([((256,), jnp.float32)] if has_bias else []),
        (pooled, jnp.bfloat16),
      )
    ).num_bytes
    for has_bias in (True, False)
  )
  assert with_bias - without < 0.2 * 2 * math.prod(shape)
