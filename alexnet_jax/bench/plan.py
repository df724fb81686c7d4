"""bench plan: compiles a train step for GPUs that need not be there."""

from collections.abc import Callable, Sequence
import math
import os
import pathlib
import re
import tomllib

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from alexnet_jax import cli, runtime, validation
from alexnet_jax.bench import harness
from alexnet_jax.errors import how_to_install, UserError
from alexnet_jax.models.costs import GPUS
from alexnet_jax.training import build, parallel

DESCRIPTION = f"""\
Compiles the train step of a recipe for GPUs that need not be there: its memory,
the bytes that its kernels read and write, what is reduced between GPUs, and the
bounds that follow from the data sheet. It needs XLA's compiler for CUDA:
{how_to_install('cuda12')}."""

DESCRIBED = ('a100', 'h100')  # those that XLA can compile for
FIGURES = {  # of a GPU, and their units
  'memory': 'bytes',
  'memory_bandwidth': 'bytes/s',
  'bfloat16_peak': 'FLOP/s',
  'float32_peak': 'FLOP/s',
  'link_bandwidth': 'bytes/s',  # of one GPU to the others, in one direction
}
_JAX_TAKES = 0.75  # of a GPU's memory
_INSTRUCTION = re.compile(
  r'^  (?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*?)\)', re.MULTILINE
)
_ARRAY = re.compile(r'\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')
# They move nothing.
_NO_KERNELS = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')


def add_arguments(parser) -> None:
  """Adds the arguments of the subcommand to its parser."""
  add = parser.add_argument
  text = f'{", ".join(DESCRIBED)} or a TOML file (default: %(default)s)'
  add('--target', default='h100', metavar='GPU', help=text)
  text = 'GPUs of one machine that share a batch (default: 1)'
  add('--devices', type=cli.positive, default=1, metavar='N', help=text)
  text = 'also finds the largest batch, in three to six compilations'
  add('--batch_search', action='store_true', help=text)
  cli.add_recipe(parser)
  parser.set_defaults(config='imagenet')


def run(arguments, overrides: list[str]) -> dict:
  """Compiles; returns the result of the command."""
  gpu = load_gpu(arguments.target)
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  devices, images = arguments.devices, config.global_batch_size
  text, memory = compile_step(config, gpu, devices)
  memory['available'] = int(gpu['memory']['value'] * _JAX_TAKES)
  costs = build.network_costs(config, build.find_num_classes(config))
  flops = costs['training_flops_per_image'] * images // devices
  counts = {'flops': flops, **count(text)}
  result = {
    **harness.header(),
    'measured': False,
    'recipe': arguments.config,
    'target': {key: gpu[key] for key in ('name', *FIGURES)},
    'dtype': config.model.dtype,
    'devices': devices,
    'global_batch_size': images,
    'memory': memory,
    **counts,
    'bounds': bounds(counts, gpu, config.model.dtype, devices, images),
  }

  def needed(batch_size):
    if batch_size * devices == images:
      return memory['needed']
    other = config.copy_and_resolve_references()
    other.global_batch_size = batch_size * devices
    return compile_step(other, gpu, devices)[1]['needed']

  if arguments.batch_search:
    first, available = images // devices, memory['available']
    found = largest_batch(needed, first, available, config.microbatch_size)
    result['largest_batch'] = found
  _show(result)
  return result


def load_gpu(name: str) -> dict:
  """Reads the description of a GPU, as gpus/h100.toml.

  It has a name, the xla.target that XLA compiles for, and all FIGURES.
  """
  example = GPUS / 'h100.toml'
  path = GPUS / f'{name}.toml' if name in DESCRIBED else pathlib.Path(name)
  if not path.is_file():
    known = ' nor '.join(DESCRIBED)
    raise UserError(
      f'--target is {name!r}: neither {known} nor a file like {example}'
    )
  try:
    gpu = tomllib.loads(path.read_text())
    gpu['name'], gpu['xla']['target']  # they must be there
    for key, unit in FIGURES.items():
      value, given, _ = (gpu[key][part] for part in ('value', 'unit', 'source'))
      if not 0 < value < math.inf or given != unit:
        raise ValueError(f'{key} is {value} {given}, no number of {unit}')
  except (ValueError, KeyError, TypeError) as error:
    problem = f'{error} is missing' if isinstance(error, KeyError) else error
    raise UserError(
      f'--target {path} describes no GPU: {problem}; {example} does'
    ) from error
  return gpu


def count(text: str) -> dict:
  """Counts what runs once in a program's HLO.

  {bytes: that kernels read and write, None if there is a loop; all_reduces:
  bytes of each, as they start}. JAX' own `cost_analysis()` is None for devices
  that are not there (0.10.2).
  """
  entry = text[text.index('\nENTRY') :]
  sizes, total, reduced = {}, 0, []
  for name, shape, operation, operands in _INSTRUCTION.findall(entry):
    sizes[name] = size = sum(
      math.prod(map(int, filter(None, dims.split(',')))) * int(bits or 8) // 8
      for bits, dims in _ARRAY.findall(shape)
    )
    if operation in ('all-reduce', 'all-reduce-start'):
      reduced.append(size)
    if operation not in _NO_KERNELS and not operation.endswith('-done'):
      read = re.findall(r'%([\w.-]+)', operands)
      total += size + sum(sizes[operand] for operand in read)
  total = None if ' while(' in entry else total
  return {'bytes': total, 'all_reduces': reduced}


def batch_structs(config) -> dict:
  """Returns a global batch of training, made of what the loader makes."""
  few = config.copy_and_resolve_references()
  few.update(global_batch_size=1)
  few.data.update(source='synthetic', synthetic_examples=8, folds=0)
  matrix = np.zeros((3, 3), np.float32) if few.data.pca_lighting else None
  loader, mesh = build.make_loader(few, 'train'), parallel.make_mesh()
  batch = next(build.make_train_iter(few, loader, 1, mesh, matrix))
  count = config.global_batch_size
  make = jax.ShapeDtypeStruct
  return {k: make((count, *np.shape(x)[1:]), x.dtype) for k, x in batch.items()}


def gpu_devices(gpu: dict, count: int) -> Sequence:
  """Returns devices of one machine to compile for, none of them real."""
  if not runtime.plugin_libraries():
    raise UserError(
      "compiling for a GPU needs XLA's compiler for CUDA, though no GPU:"
      f' {how_to_install("cuda12")}'
    )
  # Nothing of this runs on a GPU, even where there is one.
  jax.config.update('jax_platforms', 'cpu')
  # JAX' cache of programs cannot read these back.
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # it looks at the setting only once
  options = {'target_config': gpu['xla']['target'], 'topology': f'1x1x{count}'}
  try:
    return topologies.get_topology_desc('gpu', 'cuda', **options).devices
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f'XLA cannot read the description of {gpu["name"]}: {error}'
    ) from error


def compile_step(config, gpu: dict, devices: int) -> tuple[str, dict]:
  """Compiles the train step of a config for so many GPUs of one machine.

  Returns (HLO after all passes, in the order of its schedule, bytes of one
  device's memory: {argument, output, alias: of outputs in donated arguments,
  temp; peak: of the program; next_batch: on its way meanwhile; needed: both}).
  """
  config = config.copy_and_resolve_references()
  # The same numbers; functions made by pmap do not show their programs.
  config.parallel = 'shard_map'
  config.loss.class_weights = ()  # of data; they change little
  images = config.global_batch_size
  parallel.check_batch_size(images, devices)
  harness.show(f'compiling for {devices} x {gpu["name"]}, {images:,} images')
  targets = gpu_devices(gpu, devices)
  mesh = Mesh(np.array(targets), (parallel.AXIS,))
  build.num_microbatches(config, mesh)  # refuses what a run would

  def placed(tree, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

  classes = build.find_num_classes(config)
  model = build.make_model(config, classes, device=targets[0])
  state = jax.eval_shape(lambda: build.make_state(config, model))
  key = jax.eval_shape(lambda: build.dropout_key(config))
  batch = batch_structs(config)
  mean = np.zeros(build.mean_shape(config), np.float32)
  step = build.make_steps(config, mesh, mean).train
  traced = step.trace(placed(state), placed(batch, parallel.AXIS), placed(key))
  lowered = traced.lower(lowering_platforms=('cuda',))
  # Autotuning would time kernels on the GPU.
  options = {'xla_gpu_autotune_level': 0} | runtime.compiler_options(os.environ)
  compiled = lowered.compile(compiler_options=options)
  analysis = compiled.memory_analysis()
  parts = ('argument', 'output', 'alias', 'temp')  # as XLA calls them
  memory = {k: getattr(analysis, f'{k}_size_in_bytes') for k in parts}
  memory['peak'] = sum(memory.values()) - 2 * memory['alias']
  size = sum(array.size * array.dtype.itemsize for array in batch.values())
  memory['next_batch'] = size // devices
  memory['needed'] = memory['peak'] + memory['next_batch']
  return compiled.as_text(), memory


def bounds(
  counts: dict, gpu: dict, dtype: str, devices: int, images: int
) -> dict:
  """Returns what the figures of a GPU allow at most, by a device's `counts`.

  {seconds: of a step at least, {memory, if it is known, compute, links};
  images_per_second: at most; binds: whichever takes longest}.
  """
  # In a ring (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce).
  sent = 2 * (devices - 1) / devices * sum(counts['all_reduces'])
  seconds = {
    'memory': (counts['bytes'] or 0) / gpu['memory_bandwidth']['value'],
    'compute': counts['flops'] / gpu[f'{dtype}_peak']['value'],
    'links': sent / gpu['link_bandwidth']['value'],
  }
  seconds = {name: least for name, least in seconds.items() if least}
  return {
    'seconds': seconds,
    'images_per_second': {k: images / s for k, s in seconds.items()},
    'binds': max(seconds, key=seconds.get),
  }


def largest_batch(
  needed: Callable[[int], int], first: int, available: int, multiple: int = 0
) -> dict:
  """Finds the largest batch of a device whose memory fits, by compiling it.

  Two batches give a line; where it meets the available bytes, that batch is
  compiled, and so on. Batches are multiples of `multiple`, or of 64. Returns
  {device_batch_size: the largest that fits, or 0, compiled: {size: bytes}}.
  """
  multiple = multiple or 64
  batch, tried, fitting = max(first // multiple, 1) * multiple, {}, []
  while multiple <= batch not in tried and len(tried) < 6:
    tried[batch] = needed(batch)
    fitting = [batch for batch, n in tried.items() if n <= available]
    failing = [batch for batch in tried if batch not in fitting]
    if len(tried) == 1:
      meets = 2 * batch if fitting else max(batch / 2, multiple)
    else:
      # Where the line through the two nearest batches meets the memory.
      near = sorted(tried.items(), key=lambda item: abs(item[1] - available))
      (low, below), (high, above) = sorted(near[:2])
      share = (available - below) / (above - below) if above > below else 1
      meets = low + share * (high - low)
    # Between what fits and what does not.
    batch = max([int(meets // multiple) * multiple, *fitting])
    batch = min([batch, *(each - multiple for each in failing)])
  return {'device_batch_size': max(fitting, default=0), 'compiled': tried}


def _show(result):
  found, reduced = result['bounds'], result['all_reduces']
  per_image = result['devices'] / result['global_batch_size']
  tables = {'memory of a device, workspaces not counted': result['memory']}
  if largest := result.get('largest_batch'):
    title = f'largest batch of a device: {largest["device_batch_size"]:,}'
    tables[title] = largest['compiled']
  for title, sizes in tables.items():
    rows = [{'of': str(name), 'GB': n / 1e9} for name, n in sizes.items()]
    harness.show_table(title, rows, 'of GB')
  moved = (result['bytes'] or math.nan) * per_image / 1e6
  harness.show(
    f'an image: {moved:.2f} MB read and written,'
    f' {result["flops"] * per_image / 1e9:.4f} GFLOP; reduced:'
    f' {sum(reduced) / 1e6:.1f} MB in {len(reduced)} all-reduces'
  )
  rows = [
    {'bound': key, 'ms': 1e3 * found['seconds'][key], 'images/s': images}
    for key, images in found['images_per_second'].items()
  ]
  title = f'bounds, of which {found["binds"]} binds'
  harness.show_table(title, rows, 'bound ms images/s')
  harness.show('Bounds, not times: nothing was run; a real step takes longer.')
