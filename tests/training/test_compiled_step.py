"""The compiled training step: its memory, and its traffic between devices.

Seen on the CPU with jax 0.10 and 0.12: XLA makes one all-reduce of all
gradients, running statistics and sums that are float32, and one of the count,
which is int32. Batch norm has one more in each layer, forward and backward.
"""

import functools
import re

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.training import build, parallel, step
from tests.system import commands
from tests.training.steps import mesh_of

DEVICES, DEVICE_BATCH = 4, 4
SIZES = {'pred': 1, 'u8': 1, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4}
COLLECTIVE = re.compile(
  r' = (?P<result>.*?) (?P<kind>all-reduce|all-gather|all-to-all|'
  r'reduce-scatter|collective-permute|collective-broadcast)(-start)?\('
)


def collectives(program, *, repeated):
  """[(kind, bytes)] of a compiled program, in the text of its HLO.

  Args:
    program: the text.
    repeated: those in loops; otherwise those that run once in a step.
  """
  found, is_entry = [], False
  for line in program.splitlines():
    if line[:1].strip():  # a computation begins
      is_entry = line.startswith('ENTRY')
    match = COLLECTIVE.search(line)
    if match and is_entry != repeated:
      shapes = re.findall(r'(\w+)\[([\d,]*)\]', match['result'])
      num_bytes = sum(
        SIZES[dtype]
        * np.prod([int(n) for n in shape.split(',') if n], initial=1)
        for dtype, shape in shapes
      )
      found.append((match['kind'], int(num_bytes)))
  return found


def prepared(kind, **changes):
  """The train step and the shapes of (state, batch, key)."""
  config = config_lib.make_config()
  config.update_from_flattened_dict(
    commands.TINY
    | {'parallel': kind, 'global_batch_size': DEVICES * DEVICE_BATCH}
    | {k.replace('__', '.'): v for k, v in changes.items()}
  )
  mesh = parallel.make_mesh()
  assert mesh.size == DEVICES
  steps = build.make_steps(config, mesh, np.zeros(3, np.float32))
  model = build.make_model(config, 4)
  state = jax.eval_shape(lambda: build.make_state(config, model))
  lead = (config.global_batch_size,)
  if config.parallel == 'pmap':
    lead = (DEVICES, config.global_batch_size // DEVICES)
  batch = {
    'image': jax.ShapeDtypeStruct((*lead, *build.image_shape(config)), 'u1'),
    'label': jax.ShapeDtypeStruct(lead, 'i4'),
    'flip': jax.ShapeDtypeStruct(lead, 'bool'),
    'stop': jax.ShapeDtypeStruct(lead, 'bool'),  # of several processes
  }
  key = jax.eval_shape(lambda: build.dropout_key(config))
  return steps.train, (state, batch, key)


@functools.cache
def compiled(kind, **changes):
  """(program, bytes of parameters, of running statistics, of sums)."""
  train, arguments = prepared(kind, **changes)
  _, sums = jax.eval_shape(train, *arguments)
  program = jax.jit(train).lower(*arguments).compile()
  trees = arguments[0].params, arguments[0].batch_stats, sums
  return program.as_text(), *map(num_bytes, trees)


def num_bytes(tree):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def total(found):
  return sum(size for _, size in found)


@pytest.mark.parametrize(
  ('kind', 'dtype'), [('pmap', 'float32'), ('shard_map', 'bfloat16')]
)
def test_gradients_are_reduced_once(kind, dtype):
  """They are float32, whatever the computation is in."""
  program, params, _, sums = compiled(kind, model__dtype=dtype)
  once = collectives(program, repeated=False)
  # All of one type in one: the numbers of examples and signals are integers.
  assert sorted(once) == [('all-reduce', 8), ('all-reduce', params + sums - 8)]
  assert not collectives(program, repeated=True)
  assert sums == 20  # loss, top1, top5, count, stop


def test_batch_norm_adds_its_statistics():
  """Mean and mean square of each channel forward, as much backward.

  Microbatches have them each, and add no other reductions.
  """
  for size in (0, 1):
    changes = {'microbatch_size': size, 'model__norm': 'batch'}
    program, params, stats, sums = compiled('pmap', **changes)
    assert stats == 2 * (8 + 8) * 4
    once = collectives(program, repeated=False)
    in_loop = collectives(program, repeated=True)
    assert {name for name, _ in once + in_loop} == {'all-reduce'}
    of_norms = 0 if size else 2 * stats
    assert total(once) == params + stats + sums + of_norms
    assert len(once) == (2 if size else 2 + 2 * 2)
    assert total(in_loop) == 2 * stats - of_norms


def test_the_state_is_donated_and_nothing_slow_is_in_the_step():
  """No callback, no float64; the CPU's compiler makes loops of scatters."""
  train, arguments = prepared('shard_map', model__groups=(1, 2))
  program = train.lower(*arguments)
  text = program.compile().as_text()
  aliases = re.search(r'input_output_alias=\{(.*?)\}, entry', text)[1]
  pairs = re.findall(r'\{(\d+)\}: \((\d+), \{\}, [\w-]+\)', aliases)
  count = len(jax.tree.leaves(arguments[0]))
  for numbers in zip(*pairs, strict=True):
    assert sorted(map(int, numbers)) == list(range(count))
  assert ' f64[' not in text
  assert 'callback' not in text
  assert 'scatter' not in program.as_text()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_are_reduced_in_the_dtype_that_is_asked_for(dtype):
  """The CPU's compiler is given bfloat16, which it sums in float32."""
  train, arguments = prepared('shard_map', grad_allreduce_dtype=dtype)
  text = str(jax.make_jaxpr(train)(*arguments))
  kernel = arguments[0].params['conv2']['kernel'].shape
  shape = re.escape(','.join(map(str, kernel)))
  reduced = re.findall(rf':(\w+)\[{shape}\][^\n]* = psum', text)
  assert set(reduced) == {{'float32': 'f32', 'bfloat16': 'bf16'}[dtype]}


@pytest.mark.parametrize(('count', 'expected'), [(1, 1 + 2**-9), (4, 1.0)])
def test_bfloat16_rounds_what_goes_to_other_devices(count, expected):
  """1 + 2^-9 is 1 in bfloat16; a device alone sends nothing."""

  def mean(x):
    return step.mean_over_devices(x, 'bfloat16')

  mapped = jax.shard_map(
    mean,
    mesh=mesh_of(count),
    in_specs=PartitionSpec(),
    out_specs=PartitionSpec(),
  )
  x = np.full(3, 1 + 2**-9, np.float32)
  np.testing.assert_array_equal(mapped(x), np.full(3, expected, np.float32))
