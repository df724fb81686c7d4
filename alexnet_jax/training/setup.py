"""A run before its first step: data, devices, state, what is on disk."""

import jax
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax import placeholders
from alexnet_jax.data import pixel_statistics
from alexnet_jax.errors import UserError
from alexnet_jax.training import agreement
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from alexnet_jax.training import refusals
from alexnet_jax.training import restored
from alexnet_jax.training import schedule
from alexnet_jax.training import state as state_lib
from alexnet_jax.training import transfer
from alexnet_jax.training.checkpoint_contents import versions
from alexnet_jax.training.console import Speed
from alexnet_jax.training.processes import ALONE
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.progress import TrainLog
from alexnet_jax.training.run import Live
from alexnet_jax.training.run import Run
from alexnet_jax.training.shared_checkpoints import SharedCheckpoints
from alexnet_jax.training.writers import MetricWriter
from alexnet_jax.training.writers import NoWriter


def prepare(
  config,
  path,
  mesh,
  stop,
  console,
  saved=None,
  mean_limit=None,
  processes=ALONE,
) -> Run:
  """Opens the data, and builds everything that needs no state.

  Args:
    config: of the run.
    path: the run's folder, for the mean of the pixels.
    mesh: the devices.
    stop: ends the computation of the mean.
    console: shows its progress.
    saved: the JSON object of the newest checkpoint, if there is one.
    mean_limit: number of examples that the mean is taken of, for trials; None:
      all.
    processes: of the run.

  Raises:
    UserError: if the data is unfit for the config, or not that of `saved`; or
      if config.init does not fit the network.
  """
  loaders = [build.make_loader(config, s) for s in ('train', 'validation')]
  training, held_out = (loader.source for loader in loaders)
  num_classes = len(training.class_names)
  refusals.check_examples(config, training, held_out)
  record = build.data_record(config, training, held_out)
  agreement.check_data(processes, record, stop.check)
  if saved is not None:
    refusals.check_data_record(path, saved['data'], record)
  begins = saved is None and processes.is_first
  frozen = _check_init(config, training.class_names, begins=begins)
  pixels = pixel_statistics.no_statistics(build.pixel_options(config))
  if processes.is_first:
    pixels = _statistics(config, loaders[0], path, stop, console, mean_limit)
  processes.meet(stop.check)  # it may have taken minutes
  mean, color = parallel.from_first((pixels.mean, pixels.lighting))
  steps = build.make_steps(config, mesh, mean)
  return Run(
    config=config,
    workdir=path,
    stop=stop,
    console=console,
    mesh=mesh,
    train_loader=loaders[0],
    eval_loader=loaders[1],
    num_classes=num_classes,
    durations=config_lib.resolve_durations(config, training.num_examples),
    steps=steps,
    frozen_steps=(
      build.make_steps(config, mesh, mean, frozen=frozen) if frozen else steps
    ),
    color=color,
    data_record=record,
    processes=processes,
  )


# What the same weights can be used with, whatever they were trained with.
_FREE_IN_TRANSFER = (
  *('num_classes', 'dtype', 'kernel_init', 'bias_init', 'bias_layers'),
  'dropout',
)


def _check_init(config, class_names, *, begins):
  """Refuses what config.init names in vain; returns the frozen parameters."""
  init = config.init
  if not (init.freeze or (init.workdir and begins)):
    return frozenset()
  model = build.make_model(config, len(class_names))
  state = jax.eval_shape(lambda: build.make_state(config, model))
  if init.workdir and begins:
    _, names, other = restored.restore(init.workdir, init.checkpoint)
    wanted = transfer.taken(state, other, init.skip, init.workdir)
    if 'head/kernel' in wanted and not placeholders.agree(class_names, names):
      raise UserError(
        f'{init.workdir} has {placeholders.shown(names)}, the data here'
        f' {placeholders.shown(class_names)}: its outputs would mean something'
        """ else; give --config.init.skip="('head',)" for new ones"""
      )
  return transfer.frozen_names(state, init.freeze)


def _statistics(config, loader, path, stop, console, limit):
  """See `build.find_pixel_statistics`; shows how far it is."""
  total = limit or loader.source.num_examples
  console.start(total, 0, 'image', 'mean of the pixels')

  def advance(done):
    stop.check()
    console.advance(done)

  try:
    return build.find_pixel_statistics(config, loader, path, advance, limit)
  finally:
    console.stop()


def create(run: Run) -> tuple[state_lib.TrainState, Progress]:
  """The state and progress of a run that begins."""
  rate = build.learning_rate(run.config)
  progress = Progress(schedule.PlateauState(rate))
  if run.processes.is_alone:
    return run.replicate(_first_state(run)), progress
  if run.processes.is_first:
    state = jax.device_get(_first_state(run))
  else:
    state = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, leaf.dtype), state_shapes(run)
    )
  run.processes.meet(run.stop.check)
  tree = parallel.from_first(state_lib.saved_tree(state))
  state = state.replace(**tree)
  return run.replicate(state), progress


def state_shapes(run: Run) -> state_lib.TrainState:
  """The run's state as ShapeDtypeStructs."""
  model = build.make_model(run.config, run.num_classes)
  return jax.eval_shape(lambda: build.make_state(run.config, model))


def _first_state(run):
  """A fresh state, or one with the weights of another run."""
  model = build.make_model(run.config, run.num_classes)
  state = build.make_state(run.config, model)
  init = run.config.init
  if init.workdir:
    other_config, _, other = restored.restore(init.workdir, init.checkpoint)
    state = transfer.start_from(state, other, init.skip, init.workdir)
    run.console.line(
      f'starts with the weights of {init.workdir}, step {int(other.step)}'
    )
    _show_other_input(run, other_config)
  return state


def _show_other_input(run, other):
  """Says where the other network saw other pixels, or computes otherwise."""
  keys = [f'data.{k}' for k in ('mean', 'std', 'std_rgb', 'crop_size')]
  keys += [f'model.{k}' for k in other.model if k not in _FREE_IN_TRANSFER]
  before, after = map(config_lib.flatten, (other, run.config))
  for key in keys:
    if before[key] != after[key]:
      run.console.line(
        f'note: its config.{key} was {before[key]!r}, and is'
        f' {after[key]!r} here'
      )


def restore_or_create(run: Run, checkpoints: SharedCheckpoints) -> Live:
  """The newest checkpoint that counts, or step 0.

  Raises:
    UserError: if the checkpoints do not fit, or none of them counts.
  """
  state = state_shapes(run)
  restored = checkpoints.restore_newest(state_lib.saved_tree(state))
  if restored is None:
    state, progress = create(run)
    position = {'next_index': 0}
  else:
    tree, saved = restored
    state = state.replace(**run.replicate(tree))
    position = saved['iterator']
    progress = Progress.from_json(saved['progress'])
    _show_restored(run, saved, int(state.step))
  step, num_steps = int(state.step), run.durations.num_steps
  if step > num_steps:
    raise UserError(
      f'{run.workdir} is at step {step} already, beyond the {num_steps} steps'
      ' that config.num_epochs or config.num_steps asks for'
    )
  iterator = build.make_train_iter(
    run.config, run.train_loader, num_steps, run.mesh, run.color
  )
  iterator.set_state(position)
  batches = parallel.DeviceBatches(iterator, run.to_devices)
  log = TrainLog(progress, step)
  log.saved_step = step if restored else None
  writer = NoWriter()
  if run.processes.is_first:
    writer = MetricWriter(
      run.workdir, step=step, evaluated_step=progress.evaluated_step
    )
  speed = Speed(run.config.global_batch_size, batches)
  return Live(state, progress, step, batches, log, writer, checkpoints, speed)


def _show_restored(run, saved, step):
  """Says where the run goes on, and what may round otherwise than before."""
  run.console.line(f'goes on from checkpoint {step}')
  keys = ('devices', 'processes')
  here = {**versions(), 'devices': run.mesh.size}
  here['processes'] = run.processes.count
  before = {**saved['versions'], **{key: saved.get(key, 1) for key in keys}}
  if changes := [
    f'{name} {before.get(name)} -> {value}'
    for name, value in here.items()
    if before.get(name) != value
  ]:
    run.console.line(
      f'with {", ".join(changes)}: the run is right, but not bit for bit the'
      ' one it would have been'
    )
