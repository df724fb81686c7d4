"""bench step: the train step by itself, PyTorch and Keras beside it.

All candidates must compute the same: from equal weights and on equal images
each one makes a few updates without dropout, and the losses before each of them
must agree: the first if the networks are the same, the others if the updates
are. The weights are those of an initialization under which the losses of
different networks differ: with the paper's, every network says ln(classes).
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import copy
import dataclasses
import importlib.util
import itertools
import os
import statistics
import sys

import numpy as np

from alexnet_jax import cli
from alexnet_jax import runtime
from alexnet_jax.bench import gpus
from alexnet_jax.bench import report
from alexnet_jax.bench import step_peers
from alexnet_jax.bench import workers
from alexnet_jax.errors import EXIT_DONE
from alexnet_jax.errors import EXIT_FAILURE
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Times the train step that training runs, on a batch that stays on the devices.
Every network is measured with every dtype and batch size. --against runs the
same in PyTorch and in Keras on TensorFlow, each in a process of its own, on the
same cores, in turn in every round, after it has shown that from equal weights
and images it makes the same updates. One that fails or does not is named and
left out; if none is left, the exit code is 1."""

OURS = 'ours'  # the names of our candidates begin with it
PEERS = {
  'torch': ('torch eager', 'torch channels_last', 'torch compile'),
  'keras': ('keras plain', 'keras jit_compile'),
}
_NEEDED = {'torch': ('torch',), 'keras': ('keras', 'tensorflow')}
_DTYPES = ('float32', 'bfloat16')
_NUM_CLASSES = 1000  # where neither config nor data say otherwise
# Fields of a network that say how it begins rather than what it is: here the
# recipe counts.
_OF_THE_RECIPE = ('kernel_init', 'bias_init', 'width_multiplier')
_TITLES = {'train': 'train step', 'evaluate': 'evaluation step'}
_NOTES = (
  'Medians of the rounds, of ours / it of the ratios within a round. Memory is'
  ' the largest resident memory of the process, of the peak the FLOP of'
  ' convolutions and dense layers (two for a multiply-add). Ours mirrors uint8'
  ' images, subtracts the mean and counts top-1 and top-5 in the step; the'
  ' others get float32 images that are ready.'
)
# Relative: what other orders of the same sums make of float32, and what
# rounding at other places makes of bfloat16.
_TOLERANCES = {'float32': 1e-3, 'bfloat16': 3e-2}
# In tolerances: a smaller change of the losses would hide wrong updates.
_LEAST_CHANGE = 2


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  text = 'the train step alone, and PyTorch and Keras beside it'
  parser = report.add_command(commands, 'step', text, _DESCRIPTION)
  add = parser.add_argument
  cli.add_recipe(parser)
  for flag, text in (
    ('networks', "names of models/variants.py (default: the recipe's network)"),
    ('dtypes', f"{', '.join(_DTYPES)} (default: the recipe's)"),
    ('batch_sizes', "images of a step, on all devices (default: the recipe's)"),
    ('against', f'torch, keras, {", ".join(sum(PEERS.values(), ()))}'),
  ):
    add(f'--{flag}', type=report.names, default=(), metavar='A,B', help=text)
  text = 'measures our step with each value of a key: parallel=pmap,shard_map'
  add('--vary', action='append', default=[], metavar='KEY=A,B', help=text)
  add('--evaluation', action='store_true', help='also the evaluation step')
  text = 'cores that everybody runs on (default: all)'
  add('--threads', type=report.positive, default=0, help=text)
  add('--rounds', type=report.positive, default=5, help='default: 5')
  text = 'that a measurement of more than 2 steps takes at least (default: 3)'
  add('--seconds', type=float, default=3.0, help=text)
  add('--skip_check', action='store_true', help='does not compare the losses')
  parser.set_defaults(
    work=_work, exit_code=exit_code, config='configs/imagenet.py'
  )


@dataclasses.dataclass(frozen=True)
class Options:
  """The way all networks are measured."""

  cores: Sequence[int]  # that every candidate runs on
  peers: Sequence[str]  # candidates that are not ours
  rounds: int  # measurements of each
  seconds: float  # that a measurement takes at least
  parts: Sequence[str]  # train, or train and evaluate
  check: bool  # whether losses are compared before


def _work(arguments, overrides):
  report.check_names('--dtypes', arguments.dtypes, _DTYPES)
  peers = _peers(arguments.against)
  if not 0 < arguments.seconds < float('inf'):
    raise UserError(f'--seconds is {arguments.seconds:g}; give more than 0')
  cores = report.first_cores(arguments.threads)
  groups = make_groups(arguments, overrides)
  for _, tasks in groups if peers else ():
    for task in tasks.values():
      step_peers.check_config(task['config'])
  parts = tuple(_TITLES)[: 1 + arguments.evaluation]
  check = bool(peers) and not arguments.skip_check
  rounds, seconds = arguments.rounds, arguments.seconds
  options = Options(cores, peers, rounds, seconds, parts, check)
  result = {
    **report.header(),
    'recipe': arguments.config,
    'threads': len(cores),
    'rounds': rounds,
    'groups': [],
  }
  for network, tasks in groups:
    result['groups'].append(measure(network, tasks, options))
    _show_group(result['groups'][-1])
  report.show(
    f'\n{report.header_lines(result)}',
    f'{len(cores)} cores for everybody; rounds: {rounds}',
    _NOTES,
  )
  return result


def exit_code(result: dict) -> int:
  """Returns failure if a group was to be compared, and every peer failed."""
  for group in result['groups']:
    candidates = [row['candidate'] for row in group['rows']]
    if group['failed'] and all(name.startswith(OURS) for name in candidates):
      return EXIT_FAILURE
  return EXIT_DONE


def _peers(against):
  """Returns the candidates that are asked for; refuses what cannot run."""
  known = (*PEERS, *itertools.chain(*PEERS.values()))
  report.check_names('--against', against, known)
  needed = [p for name in against for p in _NEEDED[name.partition(' ')[0]]]
  if missing := [
    p for p in dict.fromkeys(needed) if importlib.util.find_spec(p) is None
  ]:
    raise UserError(
      f'{" and ".join(missing)} cannot be imported, which --against compares'
      f' with: {how_to_install("bench")}, or leave --against out'
    )
  return [way for name in against for way in PEERS.get(name, (name,))]


def make_groups(arguments, overrides: Sequence[str]) -> list[tuple]:
  """Returns (network, {name: task}) of every network, dtype and batch size.

  The tasks {config: of the run, as a dict, num_classes} are those of our
  candidates, one for each combination of --vary.

  Raises:
    UserError: if the recipe or one of the values makes no sense.
  """
  from alexnet_jax import config as config_lib
  from alexnet_jax import validation
  from alexnet_jax.bench import step_ours

  base = [f'--config={arguments.config}', *overrides]
  recipe = validation.load_config(base)
  try:
    classes = step_ours.num_classes(recipe)
  except UserError as error:  # the data need not be there
    classes = _NUM_CLASSES
    _tell(
      f'{classes:,} classes are assumed (--config.model.num_classes=N): {error}'
    )
  groups = []
  for network, *chosen in itertools.product(
    arguments.networks or ('',),
    [f'model.dtype={dtype}' for dtype in arguments.dtypes] or ('',),
    [f'global_batch_size={n}' for n in arguments.batch_sizes] or ('',),
  ):
    tasks = {}
    for varied in itertools.product(*map(_values, arguments.vary)):
      changes = [f'--config.{text}' for text in (*chosen, *varied) if text]
      config = validation.load_config([*base, *changes])
      named = {text.partition('=')[0] for text in (*base, *changes)}
      for field, value in _network_fields(network).items():
        if f'--config.model.{field}' not in named:
          config.model[field] = value
      config.model.num_classes = classes
      validation.validate(config)
      task = {'config': config.to_dict(), 'num_classes': classes}
      tasks[' '.join([OURS, *varied])] = task
    name = network or config_lib.recipe_name(arguments.config)
    groups.append((name, tasks))
  return groups


def _values(text):
  """Returns [KEY=A, KEY=B] of KEY=A,B."""
  key, _, values = text.partition('=')
  if not values:
    raise UserError(f'--vary is {text!r}; give KEY=A,B, a key of the config')
  return [f'{key}={value}' for value in values.split(',')]


def _network_fields(network):
  from alexnet_jax.models import variants

  if not network:
    return {}
  try:
    fields = variants.fields(network)
  except ValueError as error:
    raise UserError(f'--networks: {error}') from error
  return {k: v for k, v in fields.items() if k not in _OF_THE_RECIPE}


def measure(network: str, tasks: dict, options: Options) -> dict:
  """Measures one network with one dtype and batch size; see `make_groups`.

  Returns:
    {network, dtype, batch_size, platform, device_kind, device_count,
    parameters, forward_flops_per_image, training_flops_per_image, peak: FLOP/s
    of all devices or None, peak_source, rows: see `_row`, failed: [{candidate,
    error}], agreement: {candidate: losses}}.

  Raises:
    WorkerError: if ours fails.
  """
  base = next(iter(tasks.values()))
  dtype = base['config']['model']['dtype']
  failed = {}
  agreement = _agreement(base, options, failed) if options.check else {}
  peers = [name for name in options.peers if name not in failed]
  _tell(f'compiling: {", ".join([*tasks, *peers])}')
  with contextlib.ExitStack() as stack:
    running, facts = {}, {}
    for name in [*tasks, *peers]:
      with _noted(name, failed):
        worker = stack.enter_context(_start(name, options))
        task = tasks.get(name) or {**base, 'platform': facts['platform']}
        facts = worker.ask('build', task=task) | facts  # those of our first
        running[name] = worker
    times = _rounds(running, options, failed)
    memory = {name: worker.ask('memory') for name, worker in running.items()}
  result = {
    'network': network,
    'dtype': dtype,
    'batch_size': base['config']['global_batch_size'],
    **facts,
    **_peak(facts, dtype),
    'failed': [{'candidate': k, 'error': v} for k, v in failed.items()],
    'agreement': agreement,
  }
  result['rows'] = [
    _row(name, part, times, result) | {'resident_peak': memory[name]}
    for part, name in itertools.product(options.parts, running)
  ]
  return result


def _start(name, options):
  """Starts the worker of a candidate."""
  environment = {
    **os.environ,
    'OMP_NUM_THREADS': str(len(options.cores)),
    'KERAS_BACKEND': 'tensorflow',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    # Several processes share a GPU, one of which computes at a time.
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
    # The seconds that compiling takes are measured.
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
    'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1',
  }
  if name.startswith(OURS):
    environment |= runtime.xla_flags(os.environ)  # as in training
  else:  # TensorFlow's XLA ends the process at flags of another one
    environment.pop('XLA_FLAGS', None)
  return workers.Worker(
    'alexnet_jax.bench.step_peers',
    name,
    cores=options.cores,
    environment=environment,
  )


def _tell(text):
  print(text, file=sys.stderr)


@contextlib.contextmanager
def _noted(name, failed):
  """Notes a failure of a peer within the block; raises one of ours."""
  try:
    yield
  except workers.WorkerError as error:
    if name.startswith(OURS):
      raise workers.WorkerError(f'{name}: {error}') from error
    _tell(f'{name} failed: {error}')
    failed[name] = str(error)


def _agreement(base, options, failed):
  """Returns {candidate: losses}; each runs in a process that ends."""
  agreement, ours = {}, {}
  with _start(OURS, options) as worker:
    facts = worker.ask('build', task=base)
  task = checked_task(base, facts)
  for name in (OURS, *options.peers):
    _tell(f'losses of the first updates from equal weights: {name}')
    with _noted(name, failed):
      with _start(name, options) as worker:
        found = worker.ask('check', task=task, start=ours.get('start'))
      agreement[name] = found['losses']
      ours = ours or found
      dtype = base['config']['model']['dtype']
      if name != OURS and (problem := difference(ours, found, dtype)):
        raise workers.WorkerError(f'it does not compute the same: {problem}')
  return agreement


def checked_task(task: Mapping, facts: Mapping) -> dict:
  """Returns the task of the comparison that belongs to one of `make_groups`."""
  checked = copy.deepcopy(task['config'])
  count = facts['device_count']
  most = max(1, checked['global_batch_size'] // count)
  checked['global_batch_size'] = count * min(8, most)
  checked['microbatch_size'] = 0
  checked['model']['dropout'] = 0.0
  checked['model']['kernel_init'] = 'he'
  checked['data']['std'] = 60.0  # that of the pixels, more or less
  # Larger ones overshoot, and roundings grow.
  checked['optimizer']['learning_rate'] = 2e-4
  platform = facts['platform']
  return {**task, 'config': checked, 'platform': platform, 'compare': True}


def difference(ours: Mapping, other: Mapping, dtype: str) -> str:
  """Returns what is not the same, or cannot be seen; '' if all is well.

  Args:
    ours, other: {losses, parameters}.
    dtype: of the computation.
  """
  if ours['parameters'] != other['parameters']:
    return (
      f'it has {other["parameters"]:,} parameters instead of'
      f' {ours["parameters"]:,}'
    )
  tolerance = _TOLERANCES[dtype]
  first, last = ours['losses'][0], ours['losses'][-1]
  if not abs(last - first) > _LEAST_CHANGE * tolerance * abs(first):
    return (
      f'our own losses go from {first:.5f} to {last:.5f} only, which would hide'
      ' other updates; --skip_check leaves the comparison out'
    )
  if np.allclose(other['losses'], ours['losses'], rtol=tolerance, atol=0):
    return ''
  return (
    f'from equal weights its losses are {_five(other["losses"])} instead of'
    f' {_five(ours["losses"])} (tolerance: {tolerance:g} of them)'
  )


def _five(losses):
  return ', '.join(f'{loss:.5f}' for loss in losses)


def _rounds(running, options, failed):
  """Measures everybody in turn; takes those that fail out of `running`.

  Returns:
    {(candidate, part): {compile_seconds, seconds: of a step in each round}}.
  """
  times = {}
  for number in range(-1, options.rounds):  # before the first: compiling
    order = list(running)
    shift = max(number, 0) % len(order)
    for name in order[shift:] + order[:shift]:
      with _noted(name, failed):
        for part in options.parts:
          answer = running[name].ask(
            'measure', part=part, least_seconds=options.seconds
          )
          if number < 0:
            times[name, part] = {**answer, 'seconds': []}
          else:
            times[name, part]['seconds'].append(answer['seconds'])
      if name in failed:
        del running[name]
    if number >= 0:
      latest = ', '.join(
        f'{name} {1e3 * times[name, "train"]["seconds"][-1]:.1f}'
        for name in running
      )
      _tell(f'round {number + 1} of {options.rounds}: ms a step: {latest}')
  return times


def _peak(facts, dtype):
  """Returns {peak, peak_source} of all devices together."""
  known = gpus.gpu_peak(facts['device_kind'], dtype)
  if known is None:
    source = f'no peak is known of {facts["device_kind"]} in {dtype}'
    return {'peak': None, 'peak_source': source}
  return {'peak': facts['device_count'] * known[0], 'peak_source': known[1]}


def _row(name, part, times, result):
  """Returns the figures of a candidate's step.

  Returns:
    {candidate, part, seconds: of a step, each round; milliseconds and
    images_per_second: {median, min, max}; compile_seconds, share_of_peak,
    ratio: ours' images per second by its, the median over the rounds}.
  """
  seconds = times[name, part]['seconds']
  ours = next(time for key, time in times.items() if key[1] == part)['seconds']
  count = result['batch_size']
  kind = 'training' if part == 'train' else 'forward'
  flops = count * result[f'{kind}_flops_per_image']
  peak = result['peak']
  return {
    'candidate': name,
    'part': part,
    'seconds': seconds,
    'milliseconds': report.spread([1e3 * s for s in seconds]),
    'images_per_second': report.spread([count / s for s in seconds]),
    'compile_seconds': times[name, part]['compile_seconds'],
    'share_of_peak': peak and flops / statistics.median(seconds) / peak,
    'ratio': report.median_ratio(seconds, ours),
  }


def _show_group(group):
  """Prints what `measure` returns, for people."""
  peak = f'{group["peak"] / 1e9:,.1f} GFLOP/s: ' if group['peak'] else ''
  report.show(
    f'\n{group["network"]}, {group["dtype"]}, {group["batch_size"]} images a'
    f' step on {group["device_count"]} x {group["device_kind"]}:'
    f' {group["parameters"]:,} parameters;'
    f' {group["training_flops_per_image"] / 1e9:.4f} GFLOP training and'
    f' {group["forward_flops_per_image"] / 1e9:.4f} forward per image',
    f'peak: {peak}{group["peak_source"]}',
  )
  columns = ('', 'images/s', 'ms a step', 'of the peak', 'compiling', 'memory')
  columns += ('ours / it',)
  for part, title in _TITLES.items():
    rows = [row for row in group['rows'] if row['part'] == part]
    if rows:
      report.show(report.table(title, columns, map(_cells, rows)))
  for failure in group['failed']:
    report.show(f'failed: {failure["candidate"]}: {failure["error"]}')
  for name, losses in group['agreement'].items():
    report.show(f'losses from equal weights, {name}: {_five(losses)}')


def _cells(row):
  times, share = row['milliseconds'], row['share_of_peak']
  memory = row['resident_peak']
  return (
    row['candidate'],
    f'{row["images_per_second"]["median"]:,.1f}',
    f'{times["median"]:,.2f} ({times["min"]:,.2f} - {times["max"]:,.2f})',
    '-' if share is None else f'{share:.1%}',
    f'{row["compile_seconds"]:.1f} s',
    '-' if memory is None else f'{memory / 1e6:,.0f} MB',
    f'{row["ratio"]:.2f}',
  )
