"""Properties of the compiled training step."""

import re

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from alexnet_jax.training import step as step_lib


def train_step_and_arguments(**overrides):
  config = validation.load_config(
    [
      '--config=configs/quickstart.py',
      '--config.parallel=shard_map',
      '--config.global_batch_size=8',
      '--config.model.groups=(1,2,1,2,2)',
      *(f'--config.{key}={value}' for key, value in overrides.items()),
    ]
  )
  mesh = parallel.make_mesh()
  model = build.make_model(config, 10)
  state = parallel.replicate(build.make_state(config, model), mesh)
  steps = build.make_steps(config, mesh, np.zeros(3, np.float32))
  size = config.data.crop_size
  batch = {
    'image': np.zeros((8, size, size, 3), np.uint8),
    'label': np.zeros(8, np.int32),
    'flip': np.zeros(8, bool),
  }
  batch = parallel.batch_to_devices(batch, mesh, 'shard_map')
  return steps.train, (state, batch, build.dropout_key(config))


@pytest.fixture(scope='module')
def train_step():
  """(state, the compiled program, the program before compilation)."""
  step, arguments = train_step_and_arguments()
  lowered = step.lower(*arguments)
  return arguments[0], lowered.compile().as_text(), lowered.as_text()


def test_every_array_of_the_state_is_donated(train_step):
  state, text, _ = train_step
  aliases = re.search(r'input_output_alias=\{(.*?)\}, entry', text)[1]
  pairs = re.findall(r'\{(\d+)\}: \((\d+), \{\}, [\w-]+\)', aliases)
  count = len(jax.tree.leaves(state))
  assert sorted(int(output) for output, _ in pairs) == list(range(count))
  assert sorted(int(given) for _, given in pairs) == list(range(count))


def test_no_callback_no_float64_no_scatter_of_pixels(train_step):
  _, text, before = train_step
  assert ' f64[' not in text
  assert 'callback' not in text
  assert 'scatter' not in before  # the CPU's compiler makes loops of them


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_are_reduced_in_the_dtype_that_is_asked_for(dtype):
  """The CPU's compiler is given bfloat16, which it sums in float32."""
  step, arguments = train_step_and_arguments(grad_allreduce_dtype=dtype)
  text = str(jax.make_jaxpr(step)(*arguments))
  reduced = re.findall(r':(\w+)\[([\d,]*)\][^\n]* = psum', text)
  kernels = {
    ','.join(map(str, leaf.shape))
    for leaf in jax.tree.leaves(arguments[0].params)
  }
  assert reduced
  names = {'float32': 'f32', 'bfloat16': 'bf16'}
  seen = {kind for kind, shape in reduced if shape in kernels}
  assert seen == {names[dtype]}


@pytest.mark.parametrize(('count', 'expected'), [(1, 1 + 2**-9), (4, 1.0)])
def test_bfloat16_rounds_what_goes_to_other_devices(count, expected):
  """1 + 2^-9 is 1 in bfloat16; a device alone sends nothing."""
  mesh = Mesh(np.array(jax.devices()[:count]), (parallel.AXIS,))

  def mean(x):
    return step_lib.mean_over_devices({'w': x}, parallel.AXIS, 'bfloat16')['w']

  mapped = jax.shard_map(
    mean, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
  )
  x = np.full(3, 1 + 2**-9, np.float32)
  np.testing.assert_array_equal(mapped(x), np.full(3, expected, np.float32))
