"""bench end_to_end: the speed of training, and what its parts reach alone."""

import collections
import io
import pathlib
import shlex
import shutil
import statistics
import tempfile
import time

import jax

from alexnet_jax import cli, validation
from alexnet_jax.bench import harness
from alexnet_jax.data.pixel_statistics import MEAN_FILE
from alexnet_jax.errors import UserError
from alexnet_jax.training import build, guards, loop, parallel, resume

DESCRIPTION = """\
Images per second of the bare train step, of the loader alone, and of the whole
training loop with metrics, event files and asynchronous checkpoints, in turn in
every round, without compilation and evaluation; which of step and loader holds
up the loop, and the resident memory early and late in a loop."""


def add_arguments(parser) -> None:
  """Adds the arguments of the subcommand to its parser."""
  cli.add_recipe(parser)
  for flag, default, text in (
    ('steps', 100, 'in a round (default: 100)'),
    ('rounds', 5, 'default: 5'),
    ('save_every', None, 'steps between checkpoints (default: one in a loop)'),
  ):
    number = {'type': cli.positive, 'default': default, 'metavar': 'N'}
    parser.add_argument(f'--{flag}', help=text, **number)


def run(arguments, overrides: list[str]) -> dict:
  """Measures; returns the result of the command."""
  own = {f'--config.{key}' for key in _keys(1, 0)}
  if taken := [text for text in overrides if text.partition('=')[0] in own]:
    raise UserError(
      f'{shlex.join(taken)}: set by this command (--steps, --save_every)'
    )
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  # The loop makes two steps more than are timed.
  save_every = arguments.save_every or arguments.steps // 2 + 1
  return end_to_end(config, arguments.steps, arguments.rounds, save_every)


def _keys(num_steps, save_every):
  """Returns {key: value} that leave a run nothing but steps and saves."""
  return {
    'num_epochs': 0.0,
    'num_steps': num_steps,
    'eval_every_epochs': 0.0,
    'eval_every_steps': num_steps,
    'save_every_epochs': 0.0,
    'save_every_steps': save_every,
    'report': False,
    'early_stopping.enabled': False,
  }


def end_to_end(
  config, num_steps: int, num_rounds: int, save_every: int
) -> dict:
  """Measures step, loader and loop in turn, `num_steps` steps in every round.

  Returns {checkpoints: written while a loop is timed; step, loader, loop:
  images per second of each round; median: of these; loop_share: median of loop
  by step in a round; bottleneck: step or loader, the slower one; headroom: how
  many times as fast the other is; resident: {steps: early and late in the loop,
  bytes: at these}, and `harness.header`}.
  """
  result = harness.header()
  speeds = {'step': [], 'loader': [], 'loop': []}
  watched, resident = (max(1, num_steps // 5), num_steps), []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    make_steps, make_batches = _parts(config, folder)
    make_steps(1)  # it compiles
    for number in range(num_rounds):
      harness.show(f'round {number + 1} of {num_rounds}')
      seconds = {'step': _seconds(make_steps, num_steps)}
      batches = make_batches(num_steps + 1)
      next(batches)
      seconds['loader'] = _seconds(collections.deque, batches, 0)
      console = _WatchingConsole(watched)
      _loop(config, folder, console, num_steps + 2, save_every)
      # When a step is shown, the one before it has been waited for. The first
      # one compiles and is not timed; the last one is not waited for.
      seconds['loop'] = console.times[num_steps + 2] - console.times[2]
      for part, own in speeds.items():
        own.append(num_steps * config.global_batch_size / seconds[part])
      resident.append([console.resident[step] for step in watched])
  result |= {
    # Of the loop's num_steps + 2 steps the first and the last are not timed.
    'checkpoints': (num_steps + 1) // save_every - 1 // save_every,
    **speeds,
    'median': {k: statistics.median(v) for k, v in speeds.items()},
    'loop_share': harness.median_ratio(speeds['loop'], speeds['step']),
    **bottleneck(speeds['step'], speeds['loader']),
    'resident': {'steps': watched, 'bytes': resident},
    'global_batch_size': config.global_batch_size,
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }
  rows = [{'part': k, **harness.spread(v)} for k, v in speeds.items()]
  harness.show_table('images per second', rows, 'part median min max')
  harness.show(
    f'batches of {config.global_batch_size} on {result["devices"]}; the loop,'
    f' with {result["checkpoints"]} checkpoints in a round, reaches'
    f' {result["loop_share"]:.1%} of the bare step; the {result["bottleneck"]}'
    f' is the bottleneck, the other is {result["headroom"]:.2f} times as fast'
  )
  pairs = ', '.join(f'{a / 1e6:,.0f} to {b / 1e6:,.0f}' for a, b in resident)
  harness.show(f'resident MB from step {watched[0]} to {watched[1]}: {pairs}')
  return result


def _seconds(function, *arguments):
  start = time.perf_counter()
  function(*arguments)
  return time.perf_counter() - start


def bottleneck(step: list[float], loader: list[float]) -> dict:
  """Returns {bottleneck, headroom} of images per second in the same rounds."""
  ratio = harness.median_ratio(loader, step)
  slower = 'step' if ratio >= 1 else 'loader'
  return {'bottleneck': slower, 'headroom': max(ratio, 1 / ratio)}


def _parts(config, path):
  """Returns functions that make so many steps on one batch, and batches."""
  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  stop, console = guards.StopSignal(), cli.Console(io.StringIO())
  run = resume.RunContext(config, path, stop, console)
  config, loader = run.config, run.train_loader

  def make_batches(count):
    return build.make_train_iter(config, loader, count, mesh, run.lighting)

  key = build.dropout_key(config)
  batch = run.to_devices(next(make_batches(1)))
  state, _ = resume.initial_state(run)

  def make_steps(count):
    nonlocal state
    for _ in range(count):
      state, sums = run.steps.train(state, batch, key)
    jax.block_until_ready((state.params, sums))

  return make_steps, make_batches


def _loop(config, folder, console, num_steps, save_every):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(_keys(num_steps, save_every))
  with tempfile.TemporaryDirectory(dir=folder) as workdir:
    if (folder / MEAN_FILE).exists():  # another pass may take long
      shutil.copy(folder / MEAN_FILE, workdir)
    loop.train_and_evaluate(config, workdir, guards.StopSignal(), console)


class _WatchingConsole(cli.Console):
  """Shows nothing; keeps the time of every step, and the memory of some."""

  def __init__(self, watched):
    super().__init__(io.StringIO())
    self.times, self.resident = {}, dict.fromkeys(watched)

  def advance(self, done):
    super().advance(done)
    if self._unit == 'step':  # also images, of which the mean is taken
      self.times[done] = time.perf_counter()
      if done in self.resident:
        self.resident[done] = harness.resident_memory()
