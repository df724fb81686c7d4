"""The rounds of `bench step`: contenders in turn, and their numbers."""

from collections.abc import Sequence
import contextlib
import dataclasses
import math
import statistics
import sys
import tempfile

from alexnet_jax.bench import peaks
from alexnet_jax.bench import step_agreement
from alexnet_jax.bench.step_process import ContenderError
from alexnet_jax.bench.step_process import OURS
from alexnet_jax.bench.step_process import Process

_LEAST_STEPS = 2
_LAYER_SHARE = 0.01  # of --seconds, for a pass of one layer


@dataclasses.dataclass(frozen=True)
class Options:
  """How all groups are measured.

  Attributes:
    cores: that every contender runs on.
    peers: names of contenders besides ours.
    rounds: measurements of each.
    seconds: that a measurement takes at least.
    parts: train, or train and evaluate.
    layers: whether layers are timed by themselves.
    check: whether the contenders' losses are compared before.
  """

  cores: Sequence[int]
  peers: Sequence[str]
  rounds: int
  seconds: float
  parts: Sequence[str]
  layers: bool
  check: bool


def measure(group: dict, options: Options) -> dict:
  """Measures one network with one dtype and batch size.

  Args:
    group: of `step.make_groups`.
    options: see there.

  Returns:
    {network, dtype, batch_size, platform, device_kind, device_count,
    parameters, forward_flops_per_image, training_flops_per_image, peak: FLOP/s
    of all devices or None, peak_source, rows: see `_row`, failed: [{contender,
    error}], agreement: {contender: losses}, layers}.

  Raises:
    ContenderError: if ours fails.
  """
  tasks = group['tasks']
  base = next(iter(tasks.values()))
  failed, agreement = [], {}
  with contextlib.ExitStack() as stack:
    processes, facts = {}, None
    if options.check:
      peers = _agreeing(base, options, failed, agreement)
    else:
      peers = options.peers
    _tell(f'compiling: {", ".join([*tasks, *peers])}')
    for name, task in tasks.items():
      processes[name] = _start(name, options, stack)
      facts = processes[name].ask(do='build', task=task)
    for name in peers:
      with _noted(name, failed):
        process = _start(name, options, stack)
        process.ask(do='build', task={**base, 'platform': facts['platform']})
        processes[name] = process
    times = _rounds(processes, options, failed)
    rates = times.pop('peak')
    result = {
      **{key: group[key] for key in ('network', 'dtype', 'batch_size')},
      **facts,
      **_peak(facts, group['dtype'], rates),
    }
    ours = next(iter(tasks))
    # Before anything is compiled anew, to look at it.
    memory = {
      name: process.ask(do='memory') for name, process in processes.items()
    }
    result['rows'] = [
      _row(name, processes[name], part, times, ours, result) | memory[name]
      for part in options.parts
      for name in processes
    ]
  result |= {'failed': failed, 'agreement': agreement, 'layers': []}
  if options.layers:
    result['layers'] = _layers(base, options)
  return result


def _start(name, options, stack):
  process = Process(name, options.cores)
  stack.callback(process.close)
  return process


def _tell(text):
  print(text, file=sys.stderr)


@contextlib.contextmanager
def _noted(name, failed):
  """A failure of a peer within the block is noted; of ours, it is raised."""
  try:
    yield
  except ContenderError as error:
    if name.startswith(OURS):
      raise ContenderError(f'{name}: {error}') from error
    _tell(f'{name} failed: {error}')
    failed.append({'contender': name, 'error': str(error)})


def _agreeing(base, options, failed, agreement):
  """The peers that compute the same as ours; each in a process that ends."""
  names = []
  with tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_') as folder:
    _tell('losses of the first updates from equal weights, here')
    facts = _ask_once(OURS, options, do='build', task=base)
    task = step_agreement.make_task(base, facts['device_count'])
    task['platform'] = facts['platform']
    ours = _ask_once(OURS, options, do='check', task=task, folder=folder)
    agreement[OURS] = ours['losses']
    for name in options.peers:
      _tell(f'losses of the first updates in {name}')
      with _noted(name, failed):
        theirs = _ask_once(name, options, do='check', task=task, folder=folder)
        agreement[name] = theirs['losses']
        dtype = base['config']['model']['dtype']
        if said := step_agreement.difference(ours, theirs, dtype):
          raise ContenderError(f'it does not compute the same: {said}')
        names.append(name)
  return names


def _ask_once(name, options, **request):
  process = Process(name, options.cores)
  try:
    return process.ask(**request)
  finally:
    process.close()


def _rounds(processes, options, failed):
  """{(contender, part): {seconds: of a step in each round, first_seconds}}.

  And `peak`: FLOP/s of matrix products on the CPU, of each round. Contenders
  that fail are taken out of `processes`.
  """
  times, counts = {'peak': []}, {}
  for number in range(-1, options.rounds):  # before the first: compiling
    order = list(processes)
    shift = max(number, 0) % len(order)
    for name in order[shift:] + order[:shift]:
      for part in options.parts:
        if name in processes:
          with _noted(name, failed):
            _measure_one(processes[name], (name, part), counts, times, options)
            continue
          del processes[name]  # it failed
    if number >= 0:
      ours = next(iter(processes))
      times['peak'].append(processes[ours].ask(do='peak')['flops_per_second'])
      _show_round(number, times, options)
  return times


def _measure_one(process, key, counts, times, options):
  part = key[1]
  if key not in counts:  # the first call compiles
    answer = process.ask(do='run', what=part, steps=_LEAST_STEPS)
    step = answer['seconds'] / _LEAST_STEPS
    counts[key] = max(_LEAST_STEPS, math.ceil(options.seconds / step))
    compiling = max(0.0, answer['first_seconds'] - step)
    times[key] = {'seconds': [], 'compile_seconds': compiling}
    return
  answer = process.ask(do='run', what=part, steps=counts[key])
  times[key]['seconds'].append(answer['seconds'] / counts[key])
  if not math.isfinite(answer['loss']):
    raise ContenderError(f'its loss is {answer["loss"]}')


def _show_round(number, times, options):
  said = ', '.join(
    f'{name} {1e3 * time["seconds"][-1]:.1f}'
    for (name, part), time in (i for i in times.items() if i[0] != 'peak')
    if part == 'train' and len(time['seconds']) > number
  )
  _tell(f'round {number + 1} of {options.rounds}: ms a step: {said}')


def _peak(facts, dtype, rates):
  """{peak, peak_source} of all devices together."""
  if facts['platform'] == 'cpu':
    source = 'the fastest matrix product of this run, on the same cores'
    return {'peak': max(rates), 'peak_source': source}
  known = peaks.of_gpu(facts['device_kind'], dtype)
  if known is None:
    source = f'no peak is known of {facts["device_kind"]} in {dtype}'
    return {'peak': None, 'peak_source': source}
  return {'peak': facts['device_count'] * known[0], 'peak_source': known[1]}


def _row(name, process, part, times, ours, result):
  """What is known of a contender's step.

  Returns:
    {contender, part, seconds: of a step, each round; milliseconds and
    images_per_second: {median, min, max}; compile_seconds, share_of_peak,
    ratio: ours' images per second by its, the median over the rounds;
    resident_peak, device_peak: bytes; and of ours: compiled}.
  """
  seconds = times[name, part]['seconds']
  count = result['batch_size']
  flops = result['training_flops_per_image']
  if part == 'evaluate':
    flops = result['forward_flops_per_image']
  median = statistics.median(seconds)
  row = {
    'contender': name,
    'part': part,
    'seconds': seconds,
    'milliseconds': _spread([1e3 * s for s in seconds]),
    'images_per_second': _spread([count / s for s in seconds]),
    'compile_seconds': times[name, part]['compile_seconds'],
    'share_of_peak': None,
    'ratio': statistics.median(
      theirs / own
      for theirs, own in zip(seconds, times[ours, part]['seconds'], strict=True)
    ),
  }
  if result['peak']:
    row['share_of_peak'] = flops * count / median / result['peak']
  if name.startswith(OURS):
    row['compiled'] = compiled = process.ask(do='compiled', what=part)
    for key in ('flops', 'cost_analysis_flops'):  # of one device
      if (of_step := compiled[key]) is not None:
        total = of_step * result['device_count']
        compiled[f'{key}_per_image'] = total / count
  return row


def _spread(values):
  return {
    'median': statistics.median(values),
    'min': min(values),
    'max': max(values),
  }


def _layers(base, options):
  """Rows {name, kind, output, forward and backward: {milliseconds: the median
  over the rounds, share: of all layers' time, gflops_per_second or None}}.
  """
  process = Process(f'{OURS} layers', options.cores)
  try:
    rows = process.ask(do='build', task=base)['layers']
    least = _LAYER_SHARE * options.seconds
    answers = [
      process.ask(do='time', seconds=least) for _ in range(options.rounds)
    ]
  finally:
    process.close()
  return layer_rows(rows, answers)


def layer_rows(layers: list[dict], answers: list[dict]) -> list[dict]:
  """What `step_layers.Runner` said of the layers, in the rounds; see `_layers`.

  Args:
    layers: its `describe`.
    answers: of its `time`, one a round.
  """
  medians = {
    way: [
      statistics.median(values)
      for values in zip(*(a[way] for a in answers), strict=True)
    ]
    for way in ('forward', 'backward')
  }
  total = sum(map(sum, medians.values()))
  rows = []
  for index, layer in enumerate(layers):
    row = {key: layer[key] for key in ('name', 'kind', 'output')}
    for way, seconds in medians.items():
      flops = layer[f'{way}_flops']
      row[way] = {
        'milliseconds': 1e3 * seconds[index],
        'share': seconds[index] / total,
        'gflops_per_second': flops / seconds[index] / 1e9 if flops else None,
      }
    rows.append(row)
  return rows
