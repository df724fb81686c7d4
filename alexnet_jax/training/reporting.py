"""Reports a run to the user: its start, changes, end, speed and trace."""

import pathlib
import shlex
import time

import jax

from alexnet_jax.models.alexnet import resolve_implementation
from alexnet_jax.training import build
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.checkpoint import FOLDER
from alexnet_jax.training.writers import METRICS_FILE

# Of a trace, both included, counted from the start of the process.
FIRST_TRACED, LAST_TRACED = 10, 20


class Speed:
  """Images per second of the training alone.

  The clock starts after the first step, which compiles, and stands still
  between pause() and resume(): during evaluation, histograms and saving.

  Attributes:
    seconds: training time so far, up to the last pause.
  """

  def __init__(self, global_batch_size: int, batches):
    """`batches` has wait_seconds, see `parallel.DeviceBatches`."""
    self.seconds = 0.0
    self._global_batch_size = global_batch_size
    self._batches = batches
    self._since = None  # the clock stands still
    self._steps = 0
    self._first_done = False
    self._mark = (0, 0.0, 0.0)

  def count(self, log) -> None:
    """Counts one step; the first is only waited for, through log.flush()."""
    if self._first_done:
      self._steps += 1
      return
    log.flush()
    self._first_done = True
    self._mark = (*self._mark[:2], self._batches.wait_seconds)
    self.resume()

  def next_compiles(self) -> None:
    """Leaves out the next step, as the first one was."""
    self.pause()
    self._first_done = False

  def resume(self) -> None:
    """Starts the clock, unless the next step compiles."""
    if self._first_done:
      self._since = time.perf_counter()

  def pause(self) -> None:
    """Stops the clock."""
    self.seconds, self._since = self._read()[1], None

  def interval(self) -> dict[str, float]:
    """Returns {images_per_second, data_wait_fraction} since the last call.

    Empty if the only step since then is the first, which is not timed.
    """
    now, before = self._read(), self._mark
    self._mark = now
    steps, seconds, waited = (a - b for a, b in zip(now, before, strict=True))
    if not steps:
      return {}
    return {
      'images_per_second': self._throughput(steps, seconds),
      'data_wait_fraction': min(1.0, waited / max(seconds, 1e-9)),
    }

  def total(self) -> float:
    """Returns images per second since the first step; 0 if it is the only."""
    return self._throughput(*self._read()[:2])

  def _read(self):
    running = 0.0 if self._since is None else time.perf_counter() - self._since
    return self._steps, self.seconds + running, self._batches.wait_seconds

  def _throughput(self, steps, seconds):
    return steps * self._global_batch_size / max(seconds, 1e-9)


class Profile:
  """A trace of some steps of this process, for TensorBoard or Perfetto."""

  def __init__(self, folder: pathlib.Path | None, loop, console):
    """`loop` is about to make the first step; without a folder no trace."""
    self._folder = folder
    self._first, self._last = loop.step + FIRST_TRACED, loop.step + LAST_TRACED
    self._speed, self._line = loop.speed, console.line
    self._running = False

  def before(self, step: int) -> None:
    """Starts the trace if it begins with this step."""
    if self._folder and step == self._first:
      self._speed.pause()
      jax.profiler.start_trace(self._folder)
      self._running = True
      self._speed.resume()

  def after(self, step: int, sums) -> None:
    """Writes the trace if it ends with this step, which leads to `sums`."""
    if self._running and step == self._last:
      jax.block_until_ready(sums)
      self._speed.pause()
      self._write()
      self._speed.resume()

  def finish(self) -> None:
    """Writes an unfinished trace after the last step, or tells why not."""
    if self._running:
      try:
        self._write('; the run ended before')
      except RuntimeError as error:  # why the run ended matters more
        self._line(f'no trace: {error}')
    elif self._folder:
      self._line(f'no trace: the run ended before step {self._first}')

  def _write(self, note=''):
    folder, self._folder, self._running = self._folder, None, False
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
  }
  until = durations.pca_lighting_steps
  if data.pca_lighting and not (until and loop.step >= until):
    rows['PCA lighting'] = (
      f'{data.pca_lighting:g} times the {data.pca_lighting_unit}'
      + _until(until)
    )
  rows['implementation'] = resolve_implementation(
    config.implementation, device.platform
  )
  if run.is_frozen(loop.step):
    frozen = ', '.join(config.init.freeze)
    rows['frozen'] = frozen + _until(durations.unfreeze_step)
  run.console.table(f'{run.workdir}', rows)


def _until(step):
  return f', until step {step:,}' if step else ''


def show_changes(run, step: int) -> None:
  """Prints the learning rates of parameters and the lighting that change."""
  begins = run.durations.lr_multiplier_steps
  multipliers = run.config.schedule.lr_multipliers
  for begin, (_, pattern, factor) in zip(begins, multipliers, strict=True):
    if begin == step:
      run.console.line(
        f'step {step}: {pattern} trains with {factor:g} times the learning rate'
      )
  if step and step == run.durations.pca_lighting_steps:
    run.console.line(f'step {step}: PCA lighting ends')


def show_end(run, loop) -> None:
  """Prints the results, where everything is, and the next command."""
  progress, line = loop.progress, run.console.line
  best = progress.best
  for loader in (run.train_loader, run.eval_loader):
    if loader.unreadable:
      line(
        f'{len(loader.unreadable)} images of {loader.source.name} could not be'
        ' decoded and were skipped; their names are in the warnings above'
      )
  stopped = ' (stopped early)' if progress.stopping.stopped else ''
  if (kept := progress.final_step(run.config, loop.step)) != loop.step:
    stopped += f', with the state of step {kept}'
  line(
    f'done at step {loop.step}{stopped}: validation top-1'
    f' {progress.last_evaluation["eval/top1"]:.4f}; best'
    f' {run.config.checkpoint.monitor} {best.value:.4f} at step {best.step}\n'
    f'training {duration(loop.speed.seconds)}, without compilation, evaluation'
    f' and saving\ncheckpoints: {run.workdir / FOLDER}\n'
    f'history: {run.workdir / METRICS_FILE};'
    f' tensorboard --logdir {shlex.quote(str(run.workdir / "events"))}\n'
    'next: python -m alexnet_jax.evaluation.evaluate --workdir'
    f' {shlex.quote(str(run.workdir))}'
  )
