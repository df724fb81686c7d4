"""What the compiled steps have, and what they must not have."""

import re

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from alexnet_jax.training import step

RECIPE = ['--config=configs/quickstart.py', '--config.parallel=shard_map']
RECIPE += ['--config.global_batch_size=8', '--config.model.groups=(1,2,1,2,2)']


def arguments(config):
  """(train step, shapes of its arguments)."""
  mesh = parallel.make_mesh()
  steps = build.make_steps(config, mesh, np.zeros(3, np.float32))
  size = config.data.crop_size
  batch = {
    'image': jax.ShapeDtypeStruct((8, size, size, 3), np.uint8),
    'label': jax.ShapeDtypeStruct((8,), np.int32),
    'flip': jax.ShapeDtypeStruct((8,), bool),
  }
  key = jax.ShapeDtypeStruct((2,), np.uint32)
  return steps.train, (build.state_shapes(config, 10), batch, key)


def test_no_callback_no_float64_no_scatter_of_pixels():
  train, shapes = arguments(validation.load_config(RECIPE))
  text = train.lower(*shapes).as_text()
  assert 'xf64>' not in text
  assert 'callback' not in text
  assert 'scatter' not in text  # the CPU's compiler makes loops of them


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_are_reduced_in_the_dtype_that_is_asked_for(dtype):
  """Before the CPU's compiler, which sums bfloat16 in float32."""
  config = validation.load_config(
    [*RECIPE, f'--config.grad_allreduce_dtype={dtype}']
  )
  train, (state, *rest) = arguments(config)
  text = str(jax.make_jaxpr(train)(state, *rest))
  reduced = re.findall(r':(\w+)\[([\d,]*)\][^\n]* = psum', text)
  kernels = {
    ','.join(map(str, leaf.shape)) for leaf in jax.tree.leaves(state.params)
  }
  names = {'float32': 'f32', 'bfloat16': 'bf16'}
  assert {kind for kind, shape in reduced if shape in kernels} == {names[dtype]}


@pytest.mark.parametrize(('count', 'expected'), [(1, 1 + 2**-9), (4, 1.0)])
def test_bfloat16_rounds_what_goes_to_other_devices(count, expected):
  """1 + 2^-9 is 1 in bfloat16; a device alone sends nothing."""
  mesh = Mesh(np.array(jax.devices()[:count]), (parallel.AXIS,))

  def mean(x):
    return step.mean_over_devices({'w': x}, parallel.AXIS, 'bfloat16')['w']

  mapped = jax.shard_map(
    mean, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
  )
  x = np.full(3, 1 + 2**-9, np.float32)
  np.testing.assert_array_equal(mapped(x), np.full(3, expected, np.float32))
