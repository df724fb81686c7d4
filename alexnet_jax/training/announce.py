"""What the user reads when a run starts and when it is done."""

from alexnet_jax.models.alexnet import resolve_implementation
from alexnet_jax.training import build
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.checkpoint import FOLDER
from alexnet_jax.training.console import duration
from alexnet_jax.training.writers import METRICS_FILE


def show_start(run, live) -> None:
  """The run in a table: devices, data, steps, batch sizes, parameters."""
  config, durations = run.config, run.durations
  devices = run.mesh.devices.flatten()
  training, held_out = run.train_loader.source, run.eval_loader.source
  frozen = {}
  if run.is_frozen(live.step):
    until = durations.unfreeze_step
    frozen['frozen'] = ', '.join(config.init.freeze) + (
      f', until step {until:,}' if until else ''
    )
  run.console.table(
    f'{run.workdir}',
    {
      'devices': f'{len(devices)} x {devices[0].device_kind}'
      f' ({devices[0].platform}), {config.parallel}',
      'data set': f'{training.name}; {run.num_classes} classes',
      'examples': f'{training.num_examples:,} for training,'
      f' {held_out.num_examples:,} for validation',
      'steps': f'{durations.num_steps:,}'
      f' ({durations.num_steps / durations.steps_per_epoch:.1f} epochs of'
      f' {durations.steps_per_epoch:.1f} steps), from step {live.step:,}',
      'batch size': _batch_sizes(config, run.mesh),
      'crops': f'{config.data.crop_size} of {config.data.resize_size} pixels',
      'parameters': f'{state_lib.num_parameters(live.state):,}',
      **_colors(config, durations, live.step),
      'implementation': resolve_implementation(
        config.implementation, devices[0].platform
      ),
      **frozen,
    },
  )


def _colors(config, durations, step):
  until = durations.pca_lighting_steps
  if not config.data.pca_lighting or (until and step >= until):
    return {}
  return {
    'colors': f'shifted at random, {config.data.pca_lighting:g} times the'
    f' {config.data.pca_lighting_unit}'
    + (f', until step {until:,}' if until else '')
  }


def show_phase(run, live) -> None:
  """The entry of config.schedule.lr_multipliers that begins with this step."""
  if live.step in run.durations.lr_multiplier_steps:
    for begin, (_, pattern, factor) in zip(
      run.durations.lr_multiplier_steps,
      run.config.schedule.lr_multipliers,
      strict=True,
    ):
      if begin == live.step:
        run.console.line(
          f'step {live.step}: {pattern} trains with {factor:g} times the rate'
        )


def show_end_of_colors(run, live) -> None:
  """The step from which config.data.pca_lighting acts no more."""
  if live.step and live.step == run.durations.pca_lighting_steps:
    run.console.line(f'step {live.step}: colors are shifted no more')


def _batch_sizes(config, mesh):
  size = config.global_batch_size // mesh.size
  text = f'{config.global_batch_size} in all, {size} per device'
  pieces = build.num_pieces(config, mesh)
  return text + (f', in {pieces} pieces' if pieces > 1 else '')


def show_end(run, live) -> None:
  """What came out, where everything lies and what to type next."""
  progress, line = live.progress, run.console.line
  best = progress.best
  for loader in (run.train_loader, run.eval_loader):
    if loader.unreadable:
      line(
        f'{len(loader.unreadable)} images of {loader.source.name} could not be'
        ' decoded and were skipped; their names are in the warnings above'
      )
  stopped = ' (stopped early)' if progress.stopping.stopped else ''
  line(
    f'done at step {live.step}{stopped}: validation top-1'
    f' {progress.last_evaluation["eval/top1"]:.4f}; best'
    f' {run.config.checkpoint.monitor} {best.value:.4f} at step {best.step}'
  )
  line(
    f'training {duration(live.speed.seconds)}, without compilation,'
    ' evaluation and saving'
  )
  line(f'checkpoints: {run.workdir / FOLDER}')
  line(
    f'history: {run.workdir / METRICS_FILE};'
    f' tensorboard --logdir {run.workdir / "events"}'
  )
  line(
    f'next: python -m alexnet_jax.evaluation.evaluate --workdir {run.workdir}'
  )
