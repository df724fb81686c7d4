"""bench plan: compiles a train step for GPUs that need not be there.

XLA tells how much memory it takes; bytes, FLOPs and all-reduces give bounds.
None of them is a time that anybody measured: a step takes at least as long.
"""

from collections.abc import Callable
import math
import os
import re
import sys

from alexnet_jax import xla_flags
from alexnet_jax.bench import machine
from alexnet_jax.bench import report
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

_DESCRIPTION = f"""\
Compiles the train step of a recipe for GPUs that need not be there. Tells how
much memory it takes, how many bytes its kernels read and write, how many FLOPs
the network has and what is reduced between GPUs. From these and the GPU's data
sheet follow bounds. They are no times: nothing runs.

It needs XLA's compiler for CUDA: {how_to_install('cuda12')}."""

_PACKAGES = ('alexnet_jax', 'flax', 'jax', 'jaxlib', 'jax-cuda12-plugin')
_MULTIPLE = 64  # of which batches are, or of config.max_device_batch_size
_MOST_TRIALS = 6
_MEMORY = ('argument', 'output', 'alias', 'temp')  # as XLA calls it
_BOUNDS = {
  'memory': 'all bytes at the bandwidth of the memory',
  'compute': "the network's FLOPs at the peak",
  'links': 'all reduced bytes in a ring over the links',
}
_NOTES = (
  'Bytes: every kernel reads its arguments and writes its results once. FLOPs:'
  " those of the network's convolutions and dense layers.",
  'These are bounds, not times: nothing was run. A real step takes longer:'
  ' kernels do not reach the peaks and run one after the other, and the GPU'
  ' chooses the algorithms of convolutions and matrix products by timing them,'
  ' with workspaces of their own.',
)
_INSTRUCTION = re.compile(
  r'^  (?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*?)\)', re.MULTILINE
)
_ARRAY = re.compile(r'\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')
# They move nothing.
_NO_KERNELS = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  text = 'memory, bytes and bounds of a step on a GPU that is not there'
  parser = report.add_command(commands, 'plan', text, _DESCRIPTION)
  add = parser.add_argument
  known = ', '.join(machine.DESCRIBED)
  text = f'{known} or a TOML file of another (default: %(default)s)'
  add('--target', default='h100', metavar='GPU', help=text)
  text = 'GPUs of one machine that share a batch (default: 1)'
  add('--devices', type=report.positive, default=1, metavar='N', help=text)
  report.add_recipe(parser)
  text = 'also finds the largest batch, in three to six compilations'
  add('--batch_search', action='store_true', help=text)
  text = "share of the GPU's memory that JAX takes (default: %(default)s)"
  add('--memory_fraction', type=float, default=0.75, metavar='X', help=text)
  parser.set_defaults(work=_work)


def _work(arguments, overrides):
  from alexnet_jax import recipes
  from alexnet_jax.bench import step_ours

  gpu, fraction = machine.load_gpu(arguments.target), arguments.memory_fraction
  if not 0 < fraction <= 1:
    raise UserError(
      f'--memory_fraction is {fraction:g}; it must be above 0, and at most 1'
    )
  config = recipes.load_config([f'--config={arguments.config}', *overrides])
  count, images = arguments.devices, config.global_batch_size
  text, memory = compile_step(config, gpu, count)
  costs = step_ours.network_costs(config, step_ours.num_classes(config))
  memory['available'] = int(gpu['memory']['value'] * fraction)
  counts = {
    'flops': costs['training_flops_per_image'] * images // count,
    'bytes': num_bytes(text),
    'all_reduces': all_reduces(text),
  }
  result = {
    **report.header(_PACKAGES),
    'measured': False,
    'recipe': arguments.config,
    'target': {key: gpu[key] for key in ('name', *machine.FIGURES)},
    'dtype': config.model.dtype,
    'devices': count,
    'global_batch_size': images,
    'memory': memory,
    **counts,
    'bounds': bounds(counts, gpu, config.model.dtype, count, images),
  }
  if arguments.batch_search:

    def needed(batch_size):
      other = config.copy_and_resolve_references()
      other.global_batch_size = batch_size * count
      if other.global_batch_size == images:
        return memory['needed']
      return compile_step(other, gpu, count)[1]['needed']

    result['largest_batch'] = largest_batch(
      needed, images // count, memory['available'], config.max_device_batch_size
    )
  _show(result)
  return result


def _instructions(text):
  """Yields (name, shape, operation, operands) of what runs once in a step."""
  entry = text[text.index('\nENTRY') :]
  for name, shape, operation, operands in _INSTRUCTION.findall(entry):
    yield name, shape, operation, re.findall(r'%([\w.-]+)', operands)


def all_reduces(text: str) -> list[int]:
  """Returns the bytes of each all-reduce that runs once in a program's HLO."""
  kinds = ('all-reduce', 'all-reduce-start')
  return [_size(shape) for _, shape, k, _ in _instructions(text) if k in kinds]


def num_bytes(text: str) -> int | None:
  """Returns the bytes that kernels read and write; None if there is a loop."""
  sizes, total = {}, 0
  for name, shape, operation, operands in _instructions(text):
    sizes[name] = _size(shape)
    if operation == 'while':
      return None
    if operation not in _NO_KERNELS and not operation.endswith('-done'):
      total += sizes[name] + sum(sizes[operand] for operand in operands)
  return total


def _size(shape):
  """Returns the bytes of a shape of HLO: f32[2,3]{1,0} or a tuple of such."""
  return sum(
    math.prod(int(n) for n in dims.split(',') if n) * int(bits or 8) // 8
    for bits, dims in _ARRAY.findall(shape)
  )


def compile_step(config, gpu: dict, devices: int) -> tuple[str, dict]:
  """Compiles the train step that a run of the config would have.

  It is the step of `assemble.make_steps`: state donated, image uint8, the flags
  of `xla_flags`. Where config.parallel is pmap it is mapped by shard_map, which
  computes the same: functions made by pmap do not show their programs.

  Args:
    config: of the run.
    gpu: of `machine.load_gpu`.
    devices: how many GPUs share a batch, all in one machine.

  Returns:
    (HLO after all passes, in the order of its schedule, bytes of one device's
    memory: {argument, output, alias: of outputs in donated arguments, temp;
    peak: of the program; next_batch: on its way meanwhile; needed: both}).

  Raises:
    UserError: if the batch cannot be divided, the config makes no network, XLA
      for CUDA is not installed or cannot read the description. A step that
      needs more memory than the device has is compiled all the same.
  """
  import jax
  from jax.sharding import Mesh
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec
  import numpy as np

  from alexnet_jax import assemble
  from alexnet_jax import pixel_means
  from alexnet_jax.bench import step_ours
  from alexnet_jax.training import parallel

  config = config.copy_and_resolve_references()
  config.parallel = 'shard_map'
  images = config.global_batch_size
  parallel.check_batch_size(images, devices)
  print(
    f'compiling for {devices} x {gpu["name"]}, {images:,} images',
    file=sys.stderr,
  )
  targets = _devices(gpu, devices)
  mesh = Mesh(np.array(targets), (parallel.AXIS,))
  assemble.num_pieces(config, mesh)  # refuses what a run would

  def placed(tree, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

  classes = step_ours.num_classes(config)
  model = assemble.make_model(config, classes, device=targets[0])
  state = jax.eval_shape(lambda: assemble.make_state(config, model))
  key = jax.eval_shape(lambda: assemble.dropout_key(config))
  batch = step_ours.batch_structs(config)
  mean = np.zeros(pixel_means.shape(config), np.float32)
  step = assemble.make_steps(config, mesh, mean).train
  traced = step.trace(placed(state), placed(batch, parallel.AXIS), placed(key))
  lowered = traced.lower(lowering_platforms=('cuda',))
  options = xla_flags.compiler_options(os.environ)
  # Autotuning would time kernels on the GPU.
  options = {'xla_gpu_autotune_level': 0, **options}
  compiled = lowered.compile(compiler_options=options)
  analysis = compiled.memory_analysis()
  memory = {k: getattr(analysis, f'{k}_size_in_bytes') for k in _MEMORY}
  memory['peak'] = sum(memory.values()) - 2 * memory['alias']
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
  memory['next_batch'] = whole // devices
  memory['needed'] = memory['peak'] + memory['next_batch']
  return compiled.as_text(), memory


def _devices(gpu, count):
  """Returns devices to compile for, none of them real."""
  import jax
  from jax.experimental import topologies
  from jax.experimental.compilation_cache import compilation_cache

  if not xla_flags.plugin_libraries():
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


def bounds(
  counts: dict, gpu: dict, dtype: str, devices: int, images: int
) -> dict:
  """Returns the least seconds of a step, and the images per second that follow.

  The ring's time is 2 (n - 1) / n x bytes / bandwidth (Patarasuk and Yuan 2009,
  Bandwidth optimal all-reduce algorithms for clusters of workstations).

  Args:
    counts: of one device: {flops, bytes: or None, all_reduces: bytes of each}.
    gpu: the devices.
    dtype: of the computation.
    devices: how many there are.
    images: how many they share.

  Returns:
    {seconds: {memory: None if not known, compute, links}, images_per_second:
    None where seconds are 0 or None; binds: whichever takes longest}.
  """
  sent = 2 * (devices - 1) / devices * sum(counts['all_reduces'])
  traffic = counts['bytes']
  seconds = {
    'memory': traffic and traffic / gpu['memory_bandwidth']['value'],
    'compute': counts['flops'] / gpu[f'{dtype}_peak']['value'],
    'links': sent / gpu['link_bandwidth']['value'],
  }
  return {
    'seconds': seconds,
    'images_per_second': {
      k: images / s if s else None for k, s in seconds.items()
    },
    'binds': max(seconds, key=lambda name: seconds[name] or 0),
  }


def largest_batch(
  needed: Callable[[int], int], first: int, available: int, multiple: int = 0
) -> dict:
  """Finds the largest batch of a device whose memory fits, by compiling it.

  Two batches give a line; where it meets the available bytes, that batch is
  compiled, and so on, as the line is not straight: short of memory, XLA
  computes some things twice instead of keeping them. Batches are multiples of
  `multiple`, or of 64.

  Returns:
    {device_batch_size: the largest that was compiled and fits, 0 if none does,
    compiled: {batch size: bytes}}.
  """
  multiple = multiple or _MULTIPLE
  batch, tried, fitting = max(first // multiple, 1) * multiple, {}, []
  while multiple <= batch not in tried and len(tried) < _MOST_TRIALS:
    tried[batch] = needed(batch)
    fitting = [batch for batch, n in tried.items() if n <= available]
    failing = [batch for batch, n in tried.items() if n > available]
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
  """Prints the result for people."""
  memory, gpu, found = (result[key] for key in ('memory', 'target', 'bounds'))
  images, reduced = result['global_batch_size'], result['all_reduces']
  report.show(
    report.header_lines(result),
    f'{result["recipe"]}, {result["dtype"]}, {images:,} images on'
    f' {result["devices"]} x {gpu["name"]}',
  )
  for name, unit in machine.FIGURES.items():
    figure = gpu[name]
    report.show(f'  {name}: {figure["value"]:.4g} {unit} ({figure["source"]})')
  rows = [(name, f'{n / 1e9:.2f}') for name, n in memory.items()]
  report.show(report.table('memory of a device', ('', 'GB'), rows))
  if largest := result.get('largest_batch'):
    rows = [
      (f'{n:,}', f'{b / 1e9:.2f}') for n, b in largest['compiled'].items()
    ]
    title = f'largest batch of a device: {largest["device_batch_size"]:,}'
    report.show(report.table(title, ('compiled', 'GB needed'), rows))
  share = 1e6 * images / result['devices']
  traffic = (result['bytes'] or math.nan) / share
  report.show(
    f'an image: {traffic:.2f} MB read and written,'
    f' {result["flops"] / share / 1e3:.4f} GFLOP; reduced:'
    f' {sum(reduced) / 1e6:.1f} MB in {len(reduced)} all-reduces'
  )
  rows = [
    (
      what + ' (binds)' * (name == found['binds']),
      f'{1e3 * found["seconds"][name]:.3f}',
      f'{found["images_per_second"][name]:,.0f}',
    )
    for name, what in _BOUNDS.items()
    if found['seconds'][name]
  ]
  table = report.table('bounds', ('', 'ms a step', 'images/s'), rows)
  report.show(table, *_NOTES)
