"""bench end_to_end: the speed of training, and what its parts reach alone."""

import argparse
import io
import pathlib
import statistics
import sys
import tempfile
import time

from alexnet_jax import cli
from alexnet_jax.bench import step_memory
from alexnet_jax.bench import timed_run
from alexnet_jax.bench.arguments import positive
from alexnet_jax.cli import Console

_DESCRIPTION = """\
Images per second of the bare train step (one batch that stays on the devices),
of the loader alone, and of the whole training loop with loader, metrics, event
files and asynchronous checkpoints, in turn in every round; without compilation
and evaluation. Medians over the rounds, the loop's share of the bare step,
which of step and loader holds up the loop, and the resident memory early and
late in a loop."""

# Steps of the loop after which its memory is looked at; with fewer steps, the
# ends of the first and the last fifth.
_MEMORY_STEPS = (40, 200)


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'end_to_end',
    help='bare step, loader and training loop side by side',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  cli.add_recipe(parser)
  parser.add_argument(
    '--steps', type=positive, default=100, help='in a round (default: 100)'
  )
  parser.add_argument('--rounds', type=positive, default=5, help='default: 5')
  parser.add_argument(
    '--save_every',
    type=positive,
    metavar='STEPS',
    help='between the checkpoints of a loop (default: one in the middle),'
    ' whatever the recipe says',
  )
  parser.set_defaults(work=_work)


def _work(arguments, overrides):
  from alexnet_jax import validation

  timed_run.refuse_own(overrides, timed_run.keys(1), '--steps, --save_every')
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  # The loop makes two steps more than are timed.
  save_every = arguments.save_every or arguments.steps // 2 + 1
  return end_to_end(config, arguments.steps, arguments.rounds, save_every)


def end_to_end(
  config, num_steps: int, num_rounds: int, save_every: int
) -> dict:
  """Measures step, loader and loop in turn.

  Args:
    config: of the run to measure.
    num_steps: timed steps in a round.
    num_rounds: rounds.
    save_every: steps between the checkpoints of a loop.

  Returns:
    {checkpoints: written while a loop is timed; step, loader, loop: images per
    second of each round; median: of these; loop_share: the median over the
    rounds of loop / step; bottleneck: step or loader, the slower one; headroom:
    the median over the rounds of the other one's images per second by its;
    resident: {steps: early and late in the loop, bytes: at these in each
    round}}, with devices and versions.
  """
  import jax

  from alexnet_jax.training.checkpoint_contents import versions

  resident = {'steps': memory_steps(num_steps), 'bytes': []}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    parts = _prepare(config, folder)
    time_step = _bare_step(parts, num_steps)
    rows = {'step': [], 'loader': [], 'loop': []}
    for number in range(num_rounds):
      rows['step'].append(time_step())
      rows['loader'].append(_loader(parts, num_steps))
      with timed_run.workdir(folder) as workdir:
        rate, memory = _loop(config, str(workdir), num_steps, save_every)
      rows['loop'].append(rate)
      resident['bytes'].append(memory)
      latest = ', '.join(f'{k} {v[-1]:,.0f}' for k, v in rows.items())
      print(f'round {number + 1}: {latest} images/s', file=sys.stderr)
  shares = [a / b for a, b in zip(rows['loop'], rows['step'], strict=True)]
  result = {
    # Of the loop's num_steps + 2 steps the first and the last are not timed.
    'checkpoints': (num_steps + 1) // save_every - 1 // save_every,
    **rows,
    'median': {k: statistics.median(v) for k, v in rows.items()},
    'loop_share': statistics.median(shares),
    **bottleneck(rows['step'], rows['loader']),
    'resident': resident,
    'global_batch_size': config.global_batch_size,
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'versions': versions(),
  }
  _show(result, num_rounds, num_steps)
  return result


def bottleneck(step: list[float], loader: list[float]) -> dict:
  """{bottleneck, headroom} of images per second in the same rounds."""
  ratio = statistics.median(b / a for a, b in zip(step, loader, strict=True))
  if ratio < 1:
    inverse = statistics.median(
      a / b for a, b in zip(step, loader, strict=True)
    )
    return {'bottleneck': 'loader', 'headroom': inverse}
  return {'bottleneck': 'step', 'headroom': ratio}


def memory_steps(num_steps: int) -> tuple[int, int]:
  """Steps of a loop after which its memory is compared."""
  if num_steps >= _MEMORY_STEPS[1]:
    return _MEMORY_STEPS
  return max(1, num_steps // 5), max(1, num_steps * 4 // 5)


def _show(result, num_rounds, num_steps):
  medians = ', '.join(f'{k} {v:.0f}' for k, v in result['median'].items())
  other = 'loader' if result['bottleneck'] == 'step' else 'step'
  print(
    f'images per second, medians of {num_rounds} rounds of {num_steps} steps of'
    f' {result["global_batch_size"]} on {result["devices"]}: {medians}; the'
    f' loop, with checkpoints ({result["checkpoints"]} in a round), reaches'
    f' {result["loop_share"]:.1%} of the bare step\nthe'
    f' {result["bottleneck"]} is the bottleneck: the {other} alone is'
    f' {result["headroom"]:.2f} times as fast',
    file=sys.stderr,
  )
  first, last = result['resident']['steps']
  for number, (before, after) in enumerate(result['resident']['bytes'], 1):
    if before and after:
      print(
        f'resident memory in the loop of round {number}: {before / 1e6:,.1f} MB'
        f' at step {first}, {after / 1e6:,.1f} MB at step {last}',
        file=sys.stderr,
      )


def _prepare(config, path):
  from alexnet_jax.training import context
  from alexnet_jax.training import guards
  from alexnet_jax.training import parallel

  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  console = Console(io.StringIO())
  return context.prepare(
    config, path, guards.StopSignal(), console, mean_limit=256
  )


def _bare_step(parts, num_steps):
  """A function that times `num_steps` steps on one batch."""
  import jax

  from alexnet_jax.training import build
  from alexnet_jax.training import context

  key = build.dropout_key(parts.config)
  iterator = build.make_train_iter(
    parts.config, parts.train_loader, 1, parts.mesh, parts.lighting
  )
  batch = parts.to_devices(next(iterator))
  state, _ = context.initial_state(parts)
  state, sums = parts.steps.train(state, batch, key)
  jax.block_until_ready(sums)

  def measure():
    nonlocal state
    start = time.perf_counter()
    for _ in range(num_steps):
      state, sums = parts.steps.train(state, batch, key)
    jax.block_until_ready((state.params, sums))
    seconds = time.perf_counter() - start
    return num_steps * parts.config.global_batch_size / seconds

  return measure


def _loader(parts, num_steps):
  from alexnet_jax.training import build

  iterator = build.make_train_iter(
    parts.config, parts.train_loader, num_steps + 1, parts.mesh, parts.lighting
  )
  next(iterator)
  start = time.perf_counter()
  for _ in iterator:
    pass
  seconds = time.perf_counter() - start
  return num_steps * parts.config.global_batch_size / seconds


def _loop(config, workdir, num_steps, save_every):
  """A real run: (images per second, resident bytes at `memory_steps`).

  Its first step compiles and is not timed; its last one is not waited for.
  """
  from alexnet_jax.training import guards
  from alexnet_jax.training import loop

  config = config.copy_and_resolve_references()
  last = num_steps + 2
  config.update_from_flattened_dict(timed_run.keys(last, save_every))
  steps = memory_steps(num_steps)
  console = _WatchingConsole(steps)
  loop.train_and_evaluate(config, workdir, guards.StopSignal(), console)
  # When a step is told, the one before it has been waited for.
  seconds = console.times[last] - console.times[2]
  rate = num_steps * config.global_batch_size / seconds
  return rate, [console.resident[step] for step in steps]


class _WatchingConsole(Console):
  """Shows nothing; looks at the clock, and at the memory after some steps.

  Attributes:
    times: {step: seconds of a monotonic clock}.
    resident: {step: bytes, or None where the system does not tell}.
  """

  def __init__(self, steps):
    super().__init__(io.StringIO())
    self.times = {}
    self.resident = dict.fromkeys(steps)
    self._unit = ''

  def start(self, total, done, unit, what):
    super().start(total, done, unit, what)
    self._unit = unit  # also images, of which the mean is taken

  def advance(self, done):
    super().advance(done)
    if self._unit != 'step':
      return
    self.times[done] = time.perf_counter()
    if done in self.resident:
      self.resident[done] = step_memory.resident_bytes('VmRSS')
