"""Reports a run to the user: its start, end and trace."""

import pathlib
import shlex

import jax

from alexnet_jax.models.alexnet import resolve_implementation
from alexnet_jax.training import accounting, build, state as state_lib
from alexnet_jax.training.checkpoint import FOLDER
from alexnet_jax.training.writers import METRICS_FILE

# Of a trace, both included, counted from the start of the process.
FIRST_TRACED, LAST_TRACED = 10, 20


class Profile:
  """A trace of some steps of this process, for TensorBoard or Perfetto."""

  def __init__(self, folder: pathlib.Path | None, loop, console):
    """`loop` is about to make the first step; without a folder no trace."""
    self._folder = folder
    self._first, self._last = loop.step + FIRST_TRACED, loop.step + LAST_TRACED
    self._clock, self._line = loop.clock, console.line
    self._has_begun = False

  def after(self, step: int, sums) -> None:
    """Starts or writes the trace after a step, which leads to `sums`."""
    if self._folder and step == self._first - 1:
      with self._clock.inside('other'):
        jax.profiler.start_trace(self._folder)
      self._has_begun = True
    elif self._has_begun and step == self._last:
      jax.block_until_ready(sums)
      self._write()

  def finish(self) -> None:
    """Ends a trace that is under way, or tells why there is none."""
    if self._has_begun:
      try:
        self._write('; the run ended before')
      except RuntimeError as error:  # why the run ended matters more
        self._line(f'no trace: {error}')
    elif self._folder:
      self._line(f'no trace: the run ended before step {self._first}')

  def _write(self, note=''):
    folder, self._folder, self._has_begun = self._folder, None, False
    with self._clock.inside('other'):
      jax.profiler.stop_trace()
    steps = f'steps {self._first} to {self._last}'
    self._line(f'a trace of {steps}: {folder}{note}')


def duration(seconds: float) -> str:
  """Returns '3 h 05 min', '4 min 10 s' or '12 s'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes:02d} min'
  return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'


def show_start(run, loop) -> None:
  """Prints a table: devices, data, steps, batch sizes, parameters."""
  config, durations, data = run.config, run.durations, run.config.data
  device, size = run.mesh.devices.flat[0], run.mesh.size
  training, held_out = run.train_loader.source, run.eval_loader.source
  number = build.num_microbatches(config, run.mesh)
  rows = {
    'devices': f'{size} x {device.device_kind} ({device.platform}),'
    f' {config.parallel}',
    'data set': f'{training.name}; {len(run.class_names)} classes',
    'examples': f'{training.num_examples:,} for training,'
    f' {held_out.num_examples:,} for validation',
    'steps': f'{durations.num_steps:,}'
    f' ({durations.num_steps / durations.steps_per_epoch:.1f} epochs of'
    f' {durations.steps_per_epoch:.1f} steps), from step {loop.step:,}',
    'batch size': f'{config.global_batch_size} in all,'
    f' {config.global_batch_size // size} per device'
    + (f', in {number} microbatches' if number > 1 else ''),
    'crops': f'{data.crop_size} of {data.resize_size} pixels',
    'parameters': f'{state_lib.num_parameters(loop.state):,}',
    'implementation': resolve_implementation(
      config.implementation, device.platform
    ),
  }
  if config.init.freeze:
    rows['frozen'] = ', '.join(config.init.freeze)
  title = 'dry run' if run.is_trial else f'{run.workdir}'
  run.console.table(title, rows.items())


def show_end(run, loop, seconds: dict[str, float]) -> None:
  """Prints the results, where everything is, and the next command.

  For the `seconds` of the run see `accounting.Account`.
  """
  progress, line, workdir = loop.progress, run.console.line, run.workdir
  for loader in (run.train_loader, run.eval_loader):
    if loader.unreadable:
      line(
        f'{len(loader.unreadable)} images of {loader.source.name} could not be'
        ' decoded and were skipped; their names are in the warnings above'
      )
  stopped = ' (stopped early)' if progress.stopping.stopped else ''
  if (kept := progress.final_step(run.config, loop.step)) != loop.step:
    stopped += f', with the state of step {kept}'
  parts = [f'{name} {share}' for name, _, share in accounting.table(seconds)]
  line(
    f'done at step {loop.step}{stopped}: validation top-1'
    f' {progress.last_evaluation["eval/top1"]:.4f}; best'
    f' {run.config.checkpoint.monitor} {progress.best.value:.4f} at step'
    f' {progress.best.step}\n'
    f'{duration(sum(seconds.values()))} over all starts: {", ".join(parts)}\n'
    f'checkpoints: {workdir / FOLDER}\n'
    f'history: {workdir / METRICS_FILE};'
    f' tensorboard --logdir {shlex.quote(str(workdir / "events"))}\n'
    'next: python -m alexnet_jax.evaluation.evaluate --workdir'
    f' {shlex.quote(str(workdir))}'
  )
