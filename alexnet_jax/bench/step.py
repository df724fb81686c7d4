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
import importlib.util
import itertools
import os
import statistics

import numpy as np

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax import validation
from alexnet_jax.bench import costs
from alexnet_jax.bench import harness
from alexnet_jax.bench import step_peers
from alexnet_jax.errors import EXIT_DONE
from alexnet_jax.errors import EXIT_FAILURE
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError
from alexnet_jax.models import variants

DESCRIPTION = """\
Times the train step that training runs, on a batch that stays on the devices.
Every network is measured with every batch size. --against runs the
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
_NUM_CLASSES = 1000  # where neither config nor data say otherwise
# Fields of a network that say how it begins rather than what it is: here the
# recipe counts.
_OF_THE_RECIPE = ('kernel_init', 'bias_init', 'width_multiplier')
_COLUMNS = ('', 'images/s', 'ms a step', 'min', 'max', '% of peak', 'ours/it')
_NOTES = (
  'Medians of the rounds, of ours / it of the ratios within a round. Of the'
  ' peak: the FLOP of convolutions and dense layers (two for a multiply-add).'
  ' Ours mirrors uint8 images, subtracts the mean and counts top-1 and top-5 in'
  ' the step; the others get float32 images that are ready.'
)
_ENVIRONMENT = {
  'KERAS_BACKEND': 'tensorflow',
  'TF_CPP_MIN_LOG_LEVEL': '3',
  # Several processes share a GPU, one of which computes at a time.
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
}
# Relative: what other orders of the same sums make of float32, and what
# rounding at other places makes of bfloat16.
_TOLERANCES = {'float32': 1e-3, 'bfloat16': 3e-2}
# In tolerances: a smaller change of the losses would hide wrong updates.
_LEAST_CHANGE = 2


def add_arguments(parser) -> None:
  """Adds the arguments of the subcommand to its parser."""
  add = parser.add_argument
  cli.add_recipe(parser)
  for flag, text in (
    ('networks', "names of models/variants.py (default: the recipe's network)"),
    ('batch_sizes', "images of a step, on all devices (default: the recipe's)"),
    ('against', f'torch, keras, {", ".join(sum(PEERS.values(), ()))}'),
  ):
    add(f'--{flag}', type=harness.names, default=(), metavar='A,B', help=text)
  text = 'measures our step with each value of a key: parallel=pmap,shard_map'
  add('--vary', action='append', default=[], metavar='KEY=A,B', help=text)
  add('--evaluation', action='store_true', help='also the evaluation step')
  text = 'cores that everybody runs on (default: all)'
  add('--threads', type=harness.positive, default=0, help=text)
  add('--rounds', type=harness.positive, default=5, help='default: 5')
  text = 'that a measurement of more than 2 steps takes at least (default: 3)'
  add('--seconds', type=float, default=3.0, help=text)
  add('--skip_check', action='store_true', help='does not compare the losses')
  parser.set_defaults(exit_code=exit_code, config='imagenet')


def run(arguments, overrides: list[str]) -> dict:
  """Measures; returns the result of the command."""
  peers = _peers(arguments.against)
  if not 0 < arguments.seconds < float('inf'):
    raise UserError(f'--seconds is {arguments.seconds:g}; give more than 0')
  cores = first_cores(arguments.threads)
  groups = make_groups(arguments, overrides)
  for _, tasks in groups if peers else ():
    for task in tasks.values():
      step_peers.check_config(task['config'])
  result = {
    **harness.header(),
    'recipe': arguments.config,
    'threads': len(cores),
    'rounds': arguments.rounds,
    'groups': [],
  }
  for network, tasks in groups:
    result['groups'].append(measure(network, tasks, peers, arguments))
    _show(result['groups'][-1])
  harness.tell(f'{len(cores)} cores for everybody. {_NOTES}')
  return result


def exit_code(result: dict) -> int:
  """Returns failure if a group was to be compared, and every peer failed."""
  for group in result['groups']:
    candidates = [row['candidate'] for row in group['rows']]
    if group['failed'] and all(name.startswith(OURS) for name in candidates):
      return EXIT_FAILURE
  return EXIT_DONE


def first_cores(threads: int) -> list[int]:
  """Returns the first cores that this process may use, one for each thread.

  Args:
    threads: how many; 0: all.

  Raises:
    UserError: if there are fewer, or the system cannot bind processes to cores.
  """
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('this system cannot bind processes to cores; Linux can')
  cores = sorted(os.sched_getaffinity(0))
  if threads > len(cores):
    raise UserError(
      f'--threads is {threads}, but this process may use {len(cores)} cores'
    )
  return cores[: threads or len(cores)]


def _peers(against):
  """Returns the candidates that are asked for; refuses what cannot run."""
  known = (*PEERS, *itertools.chain(*PEERS.values()))
  harness.check_names('--against', against, known)
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
  """Returns (network, {name: task}) of every network and batch size.

  The tasks {config: of the run, as a dict, num_classes} are those of our
  candidates, one for each combination of --vary.

  Raises:
    UserError: if the recipe or one of the values makes no sense.
  """
  base = [f'--config={arguments.config}', *overrides]
  recipe = validation.load_config(base)
  try:
    classes = costs.num_classes(recipe)
  except UserError as error:  # the data need not be there
    classes = _NUM_CLASSES
    harness.tell(
      f'{classes:,} classes are assumed (--config.model.num_classes=N): {error}'
    )
  groups = []
  sizes = [f'global_batch_size={n}' for n in arguments.batch_sizes]
  for network, size in itertools.product(
    arguments.networks or ('',), sizes or ('',)
  ):
    tasks = {}
    for varied in itertools.product(*map(_values, arguments.vary)):
      changes = [f'--config.{text}' for text in (size, *varied) if text]
      config = validation.load_config([*base, *changes])
      named = {text.partition('=')[0] for text in (*base, *changes)}
      for field, value in _network_fields(network).items():
        if f'--config.model.{field}' not in named:
          config.model[field] = value
      config.model.num_classes = classes
      validation.validate(config)
      task = {'config': config.to_dict(), 'num_classes': classes}
      tasks[' '.join([OURS, *varied])] = task
    groups.append((network or config_lib.recipe_name(arguments.config), tasks))
  return groups


def _values(text):
  """Returns [KEY=A, KEY=B] of KEY=A,B."""
  key, _, values = text.partition('=')
  if not values:
    raise UserError(f'--vary is {text!r}; give KEY=A,B, a key of the config')
  return [f'{key}={value}' for value in values.split(',')]


def _network_fields(network):
  if not network:
    return {}
  try:
    fields = variants.fields(network)
  except ValueError as error:
    raise UserError(f'--networks: {error}') from error
  return {k: v for k, v in fields.items() if k not in _OF_THE_RECIPE}


def measure(network: str, tasks: dict, peers: Sequence[str], options) -> dict:
  """Measures one network with one batch size.

  Args:
    network: its name.
    tasks: of our candidates, see `make_groups`.
    peers: candidates of PEERS.
    options: the arguments of the command.

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
  facts, failed, ours, agreement, running = {}, {}, {}, {}, {}
  parts = ('train', 'evaluate') if options.evaluation else ('train',)
  cores = first_cores(options.threads)
  with contextlib.ExitStack() as stack:
    for name in [*tasks, *peers]:
      harness.tell(f'starting {name}')
      # TensorFlow's XLA ends the process at flags of another one.
      flags = {} if name in tasks else {'XLA_FLAGS': ''}
      worker = stack.enter_context(
        harness.Worker(
          'alexnet_jax.bench.step_peers',
          name,
          environment=_ENVIRONMENT | flags,
          cores=cores,
        )
      )
      with _noted(name, failed):
        task = tasks.get(name) or {**base, 'platform': facts['platform']}
        if peers and not (options.skip_check or (ours and name in tasks)):
          found = worker.ask('check', task=task, start=ours.get('start'))
          ours = ours or found
          agreement[name] = found['losses']
          problem = name not in tasks and difference(ours, found, dtype)
          if problem:
            raise harness.WorkerError(f'it computes something else: {problem}')
        facts = worker.ask('build', task=task) | facts  # those of our first
        running[name] = worker
    seconds = _rounds(running, parts, options, failed)
  kind, count = facts['device_kind'], facts['device_count']
  peak, source = costs.gpu_peak(kind, dtype) or (0, f'unknown of {kind}')
  result = {
    'network': network,
    'dtype': dtype,
    'batch_size': base['config']['global_batch_size'],
    **facts,
    'peak': count * peak or None,
    'peak_source': source,
    'failed': [{'candidate': k, 'error': v} for k, v in failed.items()],
    'agreement': agreement,
  }
  result['rows'] = [
    _row(name, part, seconds, result)
    for part, name in itertools.product(parts, running)
  ]
  return result


@contextlib.contextmanager
def _noted(name, failed):
  """Notes a failure of a peer within the block; raises one of ours."""
  try:
    yield
  except harness.WorkerError as error:
    if name.startswith(OURS):
      raise harness.WorkerError(f'{name}: {error}') from error
    harness.tell(f'{name} failed: {error}')
    failed[name] = str(error)


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


def _rounds(running, parts, options, failed):
  """Measures everybody in turn; takes those that fail out of `running`.

  Returns:
    {(candidate, part): seconds of a step in each round}.
  """
  seconds = {}
  for number in range(options.rounds):
    order = list(running)
    shift = number % len(order)
    for name in order[shift:] + order[:shift]:
      with _noted(name, failed):
        for part in parts:
          found = running[name].ask(
            'measure', part=part, least_seconds=options.seconds
          )
          seconds.setdefault((name, part), []).append(found)
      if name in failed:
        del running[name]
    latest = ', '.join(
      f'{name} {1e3 * seconds[name, "train"][-1]:.1f}' for name in running
    )
    harness.tell(f'round {number + 1} of {options.rounds}: ms a step: {latest}')
  return seconds


def _row(name, part, seconds, result):
  """Returns the figures of a candidate's step.

  Returns:
    {candidate, part, seconds: of a step, each round; milliseconds: {median,
    min, max}; images_per_second: the median; share_of_peak; ratio: ours' images
    per second by its, the median over the rounds}.
  """
  own = seconds[name, part]
  ours = next(times for key, times in seconds.items() if key[1] == part)
  kind = 'training' if part == 'train' else 'forward'
  speed = result['batch_size'] / statistics.median(own)
  flops = result[f'{kind}_flops_per_image'] * speed
  return {
    'candidate': name,
    'part': part,
    'seconds': own,
    'milliseconds': harness.spread([1e3 * s for s in own]),
    'images_per_second': speed,
    'share_of_peak': result['peak'] and flops / result['peak'],
    'ratio': harness.median_ratio(own, ours),
  }


def _show(group):
  """Prints what `measure` returns, for people."""
  peak = f'{group["peak"] / 1e9:,.1f} GFLOP/s: ' if group['peak'] else ''
  harness.tell(
    f'\n{group["network"]}, {group["dtype"]}, {group["batch_size"]} images a'
    f' step on {group["device_count"]} x {group["device_kind"]}:'
    f' {group["parameters"]:,} parameters;'
    f' {group["training_flops_per_image"] / 1e9:.4f} GFLOP training and'
    f' {group["forward_flops_per_image"] / 1e9:.4f} forward per image; peak:'
    f' {peak}{group["peak_source"]}'
  )
  for part, title in (('train', 'train step'), ('evaluate', 'evaluation step')):
    rows = [
      (
        row['candidate'],
        row['images_per_second'],
        *row['milliseconds'].values(),
        100 * row['share_of_peak'] if group['peak'] else '-',
        row['ratio'],
      )
      for row in group['rows']
      if row['part'] == part
    ]
    if rows:
      harness.tell_table(title, _COLUMNS, rows)
  for failure in group['failed']:
    harness.tell(f'failed: {failure["candidate"]}: {failure["error"]}')
  for name, losses in group['agreement'].items():
    harness.tell(f'losses from equal weights, {name}: {_five(losses)}')
