"""The rounds of `bench step`: candidates in turn, and their figures."""

from collections.abc import Sequence
import contextlib
import dataclasses
import itertools
import math
import os
import statistics
import sys

from alexnet_jax import runtime
from alexnet_jax.bench import machine
from alexnet_jax.bench import report
from alexnet_jax.bench import step_peers
from alexnet_jax.bench import workers

OURS = 'ours'  # the names of our candidates begin with it
_LEAST_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Options:
  """The way all networks are measured.

  Attributes:
    cores: those that every candidate runs on.
    peers: names of the candidates that are not ours.
    rounds: measurements of each.
    seconds: what a measurement takes at least.
    parts: train, or train and evaluate.
    check: whether the candidates' losses are compared before.
  """

  cores: Sequence[int]
  peers: Sequence[str]
  rounds: int
  seconds: float
  parts: Sequence[str]
  check: bool


def measure(network: str, tasks: dict, options: Options) -> dict:
  """Measures one network with one dtype and batch size.

  Args:
    network: its name, to be reported.
    tasks: {name: see `step.make_task`} of our candidates.
    options: how.

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
  failed, agreement, peers = [], {}, options.peers
  if options.check:
    peers = _agreeing(base, options, failed, agreement)
  _tell(f'compiling: {", ".join([*tasks, *peers])}')
  with contextlib.ExitStack() as stack:
    running = {}
    for name, task in tasks.items():
      running[name] = stack.enter_context(_start(name, options))
      facts = running[name].ask('build', task=task)
    for name in peers:
      with _noted(name, failed):
        worker = stack.enter_context(_start(name, options))
        worker.ask('build', task={**base, 'platform': facts['platform']})
        running[name] = worker
    times = _rounds(running, options, failed)
    result = {
      'network': network,
      'dtype': dtype,
      'batch_size': base['config']['global_batch_size'],
      **facts,
      **_peak(facts, dtype),
    }
    memory = {name: worker.ask('memory') for name, worker in running.items()}
  result['rows'] = [
    _row(name, part, times, result) | {'resident_peak': memory[name]}
    for part, name in itertools.product(options.parts, running)
  ]
  return result | {'failed': failed, 'agreement': agreement}


def _start(name, options):
  """Starts the worker of a candidate; only the first word of ours counts."""
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
    failed.append({'candidate': name, 'error': str(error)})


def _agreeing(base, options, failed, agreement):
  """Returns the peers that compute the same; each in a process that ends."""
  agreeing = []
  _tell('losses of the first updates from equal weights, here')
  with _start(OURS, options) as worker:
    facts = worker.ask('build', task=base)
  task = step_peers.checked_task(base, facts['device_count'])
  task['platform'] = facts['platform']
  with _start(OURS, options) as worker:
    ours = worker.ask('check', task=task)
  agreement[OURS] = ours['losses']
  for name in options.peers:
    _tell(f'losses of the first updates in {name}')
    with _noted(name, failed):
      with _start(name, options) as worker:
        theirs = worker.ask('check', task=task, reference=ours['reference'])
      agreement[name] = theirs['losses']
      dtype = base['config']['model']['dtype']
      if problem := step_peers.difference(ours, theirs, dtype):
        raise workers.WorkerError(f'it does not compute the same: {problem}')
      agreeing.append(name)
  return agreeing


def _rounds(running, options, failed):
  """Measures everybody in turn in every round.

  Takes candidates that fail out of `running`.

  Returns:
    {(candidate, part): {seconds: of a step in each round, compile_seconds}}.
  """
  times, counts = {}, {}
  for number in range(-1, options.rounds):  # before the first: compiling
    order = list(running)
    shift = max(number, 0) % len(order)
    for name in order[shift:] + order[:shift]:
      before = len(failed)
      with _noted(name, failed):
        for part in options.parts:
          _time(running[name], (name, part), counts, times, options)
      if len(failed) > before:
        del running[name]
    if number >= 0:
      latest = ', '.join(
        f'{name} {1e3 * times[name, "train"]["seconds"][-1]:.1f}'
        for name in running
      )
      _tell(f'round {number + 1} of {options.rounds}: ms a step: {latest}')
  return times


def _time(worker, key, counts, times, options):
  part = key[1]
  if key not in counts:  # the first call compiles
    answer = worker.ask('run', part=part, steps=_LEAST_STEPS)
    step = answer['seconds'] / _LEAST_STEPS
    counts[key] = max(_LEAST_STEPS, math.ceil(options.seconds / step))
    compiling = max(0.0, answer['first_seconds'] - step)
    times[key] = {'seconds': [], 'compile_seconds': compiling}
    return
  answer = worker.ask('run', part=part, steps=counts[key])
  if not math.isfinite(answer['loss']):
    raise workers.WorkerError(f'its loss is {answer["loss"]}')
  times[key]['seconds'].append(answer['seconds'] / counts[key])


def _peak(facts, dtype):
  """Returns {peak, peak_source} of all devices together."""
  known = machine.gpu_peak(facts['device_kind'], dtype)
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
  share = None
  if result['peak']:
    share = flops / statistics.median(seconds) / result['peak']
  return {
    'candidate': name,
    'part': part,
    'seconds': seconds,
    'milliseconds': report.spread([1e3 * s for s in seconds]),
    'images_per_second': report.spread([count / s for s in seconds]),
    'compile_seconds': times[name, part]['compile_seconds'],
    'share_of_peak': share,
    'ratio': report.median_ratio(seconds, ours),
  }
