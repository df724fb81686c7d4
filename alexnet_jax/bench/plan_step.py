"""Compiles the train step of a recipe for GPUs that are not there."""

import contextlib
import dataclasses
import os
import time

from alexnet_jax import runtime
from alexnet_jax.bench import plan_targets

# Autotuning would time kernels on the GPU.
_NO_GPU = {'xla_gpu_autotune_level': 0}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A train step as XLA compiled it for one of the devices.

  Attributes:
    text: the program, HLO after all passes in the order of its schedule.
    devices: how many share a batch.
    global_batch_size: examples of all of them in a step.
    argument_bytes, output_bytes, alias_bytes, temporary_bytes: memory of one
      device; alias_bytes are of outputs in the memory of donated arguments.
    batch_bytes: of the argument that is one device's part of a batch.
    options: of the compiler, beside XLA_FLAGS.
    seconds: that tracing and compiling took.
  """

  text: str
  devices: int
  global_batch_size: int
  argument_bytes: int
  output_bytes: int
  alias_bytes: int
  temporary_bytes: int
  batch_bytes: int
  options: dict
  seconds: float

  @property
  def device_batch_size(self) -> int:
    """Examples of one device in a step."""
    return self.global_batch_size // self.devices

  @property
  def peak_bytes(self) -> int:
    """Arguments, temporaries and outputs that are no argument's memory."""
    return (
      self.argument_bytes
      + self.temporary_bytes
      + self.output_bytes
      - self.alias_bytes
    )


def compile_step(
  config,
  target: plan_targets.Target,
  devices: int = 1,
  global_batch_size: int | None = None,
  options: dict | None = None,
) -> CompiledStep:
  """Compiles the train step that a run of the config would have.

  It is the step of `build.make_steps`: state donated, image uint8, the flags
  of `xla_flags`. Where config.parallel is pmap it is mapped by shard_map, which
  computes the same: functions made by pmap do not show their programs.

  Args:
    config: of the run.
    target: of `plan_targets.load`.
    devices: how many, all in one machine.
    global_batch_size: examples of all of them; None: the config's.
    options: of the compiler, besides those flags; {name: value}.

  Raises:
    UserError: if the batch cannot be divided, the config makes no network, or
      XLA for CUDA is not installed. A step that needs more memory than the
      device has is compiled all the same.
  """
  start = time.perf_counter()
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.parallel = 'shard_map'
    config.global_batch_size = global_batch_size or config.global_batch_size
  traced, batch_bytes = _traced(config, target, devices)
  options = {
    **_NO_GPU,
    **runtime.compiler_options(os.environ),
    **(options or {}),
  }
  compiled = _compiled(traced, options)
  memory = compiled.memory_analysis()
  return CompiledStep(
    text=compiled.as_text(),
    devices=devices,
    global_batch_size=config.global_batch_size,
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes,
    alias_bytes=memory.alias_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    batch_bytes=batch_bytes,
    options=options,
    seconds=time.perf_counter() - start,
  )


def _traced(config, target, count):
  """(the traced step, bytes of a batch on one device)."""
  import jax
  from jax.sharding import Mesh
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec
  import numpy as np

  from alexnet_jax.training import build
  from alexnet_jax.training import parallel

  parallel.check_batch_size(config.global_batch_size, count)
  devices = plan_targets.devices(target, count)
  mesh = Mesh(np.array(devices), (parallel.AXIS,))
  build.num_microbatches(config, mesh)  # refuses what a run would
  whole = NamedSharding(mesh, PartitionSpec())
  split = NamedSharding(mesh, PartitionSpec(parallel.AXIS))

  def on_devices(tree, sharding):
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      tree,
    )

  model = build.make_model(config, num_classes(config), device=devices[0])
  state = jax.eval_shape(lambda: build.make_state(config, model))
  key = jax.eval_shape(lambda: build.dropout_key(config))
  batch = batch_shapes(config)
  mean = np.zeros(build.pixel_options(config).mean_shape, np.float32)
  traced = build.make_steps(config, mesh, mean).train.trace(
    on_devices(state, whole), on_devices(batch, split), on_devices(key, whole)
  )
  num_bytes = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)
  )
  return traced, num_bytes // count


def _compiled(traced, options):
  lowered = traced.lower(lowering_platforms=('cuda',))
  with _without_cache():
    return lowered.compile(compiler_options=options)


@contextlib.contextmanager
def _without_cache():
  """Leaves JAX's cache of programs alone: it cannot read this one back."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # it looks at the setting only once
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def num_classes(config) -> int:
  """Of the config, or of its data."""
  from alexnet_jax.training import build

  if config.model.num_classes:
    return config.model.num_classes
  return len(build.make_source(config, 'train').class_names)


def batch_shapes(config) -> dict:
  """A global batch as ShapeDtypeStructs; see `pipeline.make_train_iter`."""
  import jax
  import numpy as np

  from alexnet_jax.training import build

  size = (config.global_batch_size,)
  dtypes = {'label': np.int32}
  if config.data.random_flip:
    dtypes['flip'] = np.bool_
  if config.data.brightness:
    dtypes['brightness'] = np.float32
  if config.data.unreadable == 'skip':
    dtypes['unreadable'] = np.bool_
  shape = (*size, *build.image_shape(config))
  if config.data.pca_lighting_shrink:
    dtypes['scale'] = np.float32
  color = jax.ShapeDtypeStruct((*size, 3), np.float32)
  return {
    'image': jax.ShapeDtypeStruct(shape, np.uint8),
    **({'color': color} if config.data.pca_lighting else {}),
    **{name: jax.ShapeDtypeStruct(size, d) for name, d in dtypes.items()},
  }
