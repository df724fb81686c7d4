"""Traffic between the devices in a step, counted in compiled programs.

Seen on the CPU with jax 0.10 and 0.12: XLA makes one all-reduce of all
gradients, running statistics and sums that are float32, and one of the count,
which is int32. Batch norm has one more in each layer, forward and backward.
"""

import functools
import itertools
import re
import types

import jax
from jax import lax
import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from alexnet_jax.training import step
from tests.some_slow import some_slow
from tests.system import commands

DEVICES, DEVICE_BATCH = 4, 4
SIZES = {'pred': 1, 'u8': 1, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4}
COLLECTIVE = re.compile(
  r' = (?P<result>.*?) (?P<kind>all-reduce|all-gather|all-to-all|'
  r'reduce-scatter|collective-permute|collective-broadcast)(-start)?\('
)
BOTH = pytest.mark.parametrize('kind', ['pmap', 'shard_map'])


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


def small(kind, **changes):
  config = config_lib.make_config()
  values = {k.replace('__', '.'): v for k, v in changes.items()}
  config.update_from_flattened_dict(
    commands.TINY
    | {'parallel': kind, 'global_batch_size': DEVICES * DEVICE_BATCH}
    | values
  )
  return config


@functools.cache
def compiled_small(kind, **changes):
  return compiled(small(kind, **changes))


def compiled(config, num_classes=4):
  """(program, bytes of parameters, of running statistics, of sums)."""
  mesh = parallel.make_mesh()
  assert mesh.size == DEVICES
  steps = build.make_steps(config, mesh, np.zeros(3, np.float32))
  model = build.make_model(config, num_classes)
  state = jax.eval_shape(lambda: build.make_state(config, model))
  lead = (config.global_batch_size,)
  if config.parallel == 'pmap':
    lead = (DEVICES, config.global_batch_size // DEVICES)
  batch = {
    'image': jax.ShapeDtypeStruct((*lead, *build.image_shape(config)), 'u1'),
    'label': jax.ShapeDtypeStruct(lead, 'i4'),
    'stop': jax.ShapeDtypeStruct(lead, 'bool'),  # of several processes
  }
  key = jax.eval_shape(lambda: build.dropout_key(config))
  train = jax.jit(steps.train)
  _, sums = jax.eval_shape(train, state, batch, key)
  trees = (state.params, state.batch_stats, sums)
  program = train.lower(state, batch, key).compile().as_text()
  return program, *map(num_bytes, trees)


def num_bytes(tree):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def total(found):
  return sum(size for _, size in found)


@pytest.mark.parametrize(
  ('kind', 'dtype'),
  some_slow(
    itertools.product(('pmap', 'shard_map'), ('float32', 'bfloat16')),
    quick=[('pmap', 'float32'), ('shard_map', 'bfloat16')],
  ),
)
def test_gradients_are_reduced_once(kind, dtype):
  """They are float32, whatever the computation is in."""
  program, params, _, sums = compiled_small(kind, model__dtype=dtype)
  once = collectives(program, repeated=False)
  # All of one type in one: the numbers of examples and signals are integers.
  assert sorted(once) == [('all-reduce', 8), ('all-reduce', params + sums - 8)]
  assert not collectives(program, repeated=True)
  assert sums == 20  # loss, top1, top5, count, stop


@BOTH
def test_batch_norm_adds_its_statistics(kind):
  """Mean and mean square of each channel forward, as much backward."""
  program, params, stats, sums = compiled_small(kind, model__norm='batch')
  once = collectives(program, repeated=False)
  assert stats == 2 * (8 + 8) * 4
  assert {name for name, _ in once} == {'all-reduce'}
  assert total(once) == params + stats + sums + 2 * stats
  assert len(once) == 2 + 2 * 2
  assert not collectives(program, repeated=True)


@pytest.mark.parametrize(
  ('kind', 'norm'),
  some_slow(
    itertools.product(('pmap', 'shard_map'), ('lrn', 'batch')),
    quick=[('pmap', 'lrn')],
  ),
)
def test_microbatches_add_no_reductions(kind, norm):
  """But for the statistics of batch norm, which every microbatch has."""
  # As of the tests above.
  plain = (
    {'model__dtype': 'float32'} if norm == 'lrn' else {'model__norm': norm}
  )
  whole, params, stats, sums = compiled_small(kind, **plain)
  program, *_ = compiled_small(kind, microbatch_size=1, **plain)
  assert ' while(' in program  # microbatches are computed in turn
  once = collectives(program, repeated=False)
  assert len(once) == 2
  assert total(once) == params + stats + sums
  in_loop = collectives(program, repeated=True)
  assert total(in_loop) == 2 * stats
  assert total(collectives(whole, repeated=False)) == total(once + in_loop)


def test_a_second_reduction_would_be_seen(monkeypatch):
  def twice(tree, axis):
    return lax.pmean(lax.pmean(tree, axis), axis)

  replaced = types.SimpleNamespace(**{**vars(lax), 'pmean': twice})
  monkeypatch.setattr(step, 'lax', replaced)
  program, params, _, sums = compiled(small('shard_map'))
  assert total(collectives(program, repeated=False)) == 2 * params + sums
