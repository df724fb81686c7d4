"""Layers and directions, of paths as XLA prints them and of a real step."""

import collections

import jax
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.bench import compiled_counts
from alexnet_jax.bench import compiled_layers
from alexnet_jax.bench import compiled_schedule
from alexnet_jax.bench import compiled_text
from alexnet_jax.bench import plan_step
from alexnet_jax.evaluation import summary
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from tests.bench_plan.programs import program
from tests.system import commands

NET = 'jit(sharded)/shard_map/jvp(AlexNet)'
BACK = 'jit(sharded)/shard_map/transpose(jvp(AlexNet))'
BLOCK = 'AlexNet._convolution_block'
HIDDEN = 'AlexNet._hidden_block'
RELU = 'AlexNet._relu_and'

# A path of each kernel in a chain, and where the kernel belongs.
CHAIN = (
  (f'{NET}/convert_element_type', ('', 'input')),
  (f'{NET}/{BLOCK}/conv1/conv_general_dilated', ('conv1', 'forward')),
  (f'{NET}/{BLOCK}/{RELU}/jit(relu)/max', ('conv1', 'forward')),
  (f'{NET}/{BLOCK}/{RELU}/AlexNet._normalize/mul', ('lrn1', 'forward')),
  (f'{NET}/{BLOCK}/reduce_window_max', ('pool1', 'forward')),
  (f'{NET}/{BLOCK}/conv2/add', ('conv2', 'forward')),
  ('', ('conv2', 'forward')),
  (f'{NET}/{HIDDEN}/AlexNet._dense/dense1/dot_general', ('dense1', 'forward')),
  (f'{NET}/{HIDDEN}/AlexNet._dropout/select_n', ('dropout1', 'forward')),
  (f'{NET}/AlexNet._dense/head/add', ('head', 'forward')),
  ('jit(sharded)/shard_map/jvp()/reduce_sum', ('', 'loss')),
  ('jit(f)/transpose(jvp(jit(take_along_axis)))/scatter', ('', 'loss')),
  (f'{BACK}/AlexNet._dense/head/dot_general', ('head', 'backward')),
  (f'{BACK}/{BLOCK}/conv2/conv_general_dilated', ('conv2', 'backward')),
  (f'{BACK}/{BLOCK}/conv1/reduce_sum', ('conv1', 'backward')),
)


DEVICES = jax.local_device_count()


def places(text):
  read = compiled_text.parse(text)
  return compiled_layers.places(read, compiled_schedule.launches(read))


def chain(paths):
  """A program of kernels, each of which takes the result of the one before."""
  lines = ['%k0 = f32[8]{0} parameter(0), metadata={op_name="batch"}']
  for number, path in enumerate(paths, 1):
    metadata = f', metadata={{op_name="{path}"}}' if path else ''
    lines.append(f'%k{number} = f32[8]{{0}} negate(%k{number - 1}){metadata}')
  return program('\n'.join(lines))


def test_a_chain_of_paths():
  found = places(chain([path for path, _ in CHAIN]))
  assert found == [place for _, place in CHAIN]


def test_backward_the_number_is_that_of_the_lower_layer():
  """Of pool1: from conv2's gradient, and from what conv1 gave."""
  entry = f"""
    %p = f32[8]{{0}} parameter(0)
    %one = f32[8]{{0}} negate(%p), \
      metadata={{op_name="{NET}/{BLOCK}/conv1/add"}}
    %two = f32[8]{{0}} negate(%one), \
      metadata={{op_name="{BACK}/{BLOCK}/conv2/add"}}
    ROOT %k = f32[8]{{0}} add(%two, %one), \
      metadata={{op_name="{BACK}/{BLOCK}/select_and_scatter"}}
  """
  assert places(program(entry))[-1] == ('pool1', 'backward')


def test_the_update_belongs_to_the_layer_of_its_parameter():
  inside = f"""
    %c (g: f32[8], v: f32[8]) -> f32[8] {{
      %g = f32[8]{{0}} parameter(0)
      %v = f32[8]{{0}} parameter(1)
      %d = f32[8]{{0}} negate(%g), \
        metadata={{op_name="{BACK}/{BLOCK}/conv1/convert"}}
      ROOT %s = f32[8]{{0}} add(%d, %v)
    }}
  """
  entry = """
    %p = f32[8]{0} parameter(0)
    %v = f32[8]{0} parameter(1), metadata={op_name=\
"state.opt_state.inner_state[1].trace[\\'dense2\\'][\\'kernel\\']"}
    %k = f32[8]{0} fusion(%p, %v), kind=kLoop, calls=%c
    ROOT %y = f32[8]{0} copy(%k)
  """
  assert places(program(entry, inside)) == [('dense2', 'update')] * 2


def test_packing_is_part_of_the_reduction():
  entry = f"""
    %p = f32[8]{{0}} parameter(0)
    %a = f32[8]{{0}} negate(%p), metadata={{op_name="{BACK}/{BLOCK}/conv1/add"}}
    %b = f32[8]{{0}} negate(%p), metadata={{op_name="{BACK}/{BLOCK}/conv2/add"}}
    %c = f32[16]{{0}} concatenate(%a, %b), dimensions={{0}}
    %s = f32[16]{{0}} all-reduce-start(%c), to_apply=%add
    %d = f32[16]{{0}} all-reduce-done(%s)
    ROOT %e = f32[8]{{0}} slice(%d), slice={{[0:8]}}
  """
  assert places(program(entry))[2:] == [('', 'reduction')] * 3


def test_what_nobody_says_is_other():
  assert places(chain(['', 'jit(f)/mul'])) == [('', 'other')] * 2


@pytest.fixture(scope='module')
def counts():
  """Of a real train step, as the CPU of these tests compiles it."""
  overrides = [
    f'--config.{key}={value}'
    for key, value in commands.TINY.items()
    if key.startswith(('data.synthetic', 'data.crop', 'data.resize', 'model.'))
  ]
  config = validation.load_config(
    [
      f'--config={commands.ROOT}/configs/quickstart.py',
      *('--config.global_batch_size=8', '--config.parallel=shard_map'),
      *('--config.data.source=synthetic', '--config.model.norm=lrn'),
      '--config.forms=plain',
      *overrides,
    ]
  )
  model = build.make_model(config, 4)
  mesh = parallel.make_mesh(local=True)
  assert mesh.size == DEVICES
  steps = build.make_steps(config, mesh, np.zeros(3, np.float32))
  traced = steps.train.trace(
    jax.eval_shape(lambda: build.make_state(config, model)),
    plan_step.batch_shapes(config),
    jax.eval_shape(lambda: build.dropout_key(config)),
  )
  text = traced.lower().compile().as_text()
  totals = summary.totals(
    *summary.layer_table(model, build.image_shape(config))
  )
  return compiled_counts.count(text), totals


def test_a_real_step_has_its_layers(counts):
  counts, totals = counts
  found = collections.Counter(k.layer for k in counts.kernels)
  assert {'conv1', 'conv2', 'dense1', 'head'} <= set(found)
  directions = {k.direction for k in counts.kernels}
  assert {'forward', 'backward', 'update'} <= directions
  assert directions <= set(compiled_layers.DIRECTIONS)
  nowhere = sum(k.num_bytes for k in counts.kernels if k.direction == 'other')
  assert nowhere < 0.1 * counts.num_bytes
  assert counts.unknown_loops == []
  reduced = sum(each.num_bytes for each in counts.reductions)
  assert 0 <= reduced - 4 * totals['parameters'] < 64  # with the metrics
  per_image = counts.total('flops') / (8 // DEVICES)
  assert per_image == pytest.approx(
    totals['training_flops_per_image'], rel=0.02
  )


def test_rows_add_up(counts):
  counts, _ = counts
  result = counts.to_json(3)
  assert len(result['largest']) == 3
  largest = [k['read_bytes'] + k['written_bytes'] for k in result['largest']]
  assert largest == sorted(largest, reverse=True)
  for name in ('read_bytes', 'written_bytes', 'flops'):
    assert sum(row[name] for row in result['by_layer']) == result[name]
  assert sum(row['kernels'] for row in result['by_layer']) == result['kernels']
