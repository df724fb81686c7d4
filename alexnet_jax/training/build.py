"""Makes the parts of a run from its config: data, model, optimizer, steps."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import numpy as np

from alexnet_jax.data import (
  augment,
  loader as loader_lib,
  order,
  pipeline,
  pixel_statistics,
  sources,
  splits,
)
from alexnet_jax.data.tfds_records import check_disjoint
from alexnet_jax.errors import UserError
from alexnet_jax.models import costs
from alexnet_jax.models.alexnet import AlexNet, resolve_implementation
from alexnet_jax.training import (
  optimizer,
  parallel,
  schedule,
  state as state_lib,
  step,
)
from alexnet_jax.training.progress import DataRecord


@dataclasses.dataclass(frozen=True)
class Steps:
  """The step functions, mapped over the devices."""

  train: Callable  # (state, batch, key) -> (state, sums); donates the state
  evaluate: Callable  # (state, batch) -> sums and predictions
  features: Callable  # `layers` of `step.feature_step` -> that step


def make_source(config, split: str):
  """Opens a split of the config's data; see `sources.make_source`."""
  data = config.data
  fields = dataclasses.fields(sources.SourceOptions)
  options = {f.name: data[f.name] for f in fields if f.name in data}
  # Folds are of the training examples. TFDS has splits of its own as well.
  held_out = data.tfds_train_split if data.folds else data.tfds_eval_split
  named = {'train': data.tfds_train_split, 'validation': held_out}
  options['tfds_split'] = named.get(split, split)
  return sources.make_source(data.source, split, **options)


def make_loader(config, split: str, **hint: str) -> loader_lib.Loader:
  """Returns a loader of a split; `hint` may be the `skip_hint` of `Loader`."""
  source, data = make_source(config, split), config.data
  size = getattr(source, 'square_size', data.resize_size)
  if size != data.resize_size:
    raise UserError(
      f'config.data.resize_size is {data.resize_size}, but the raw set'
      f' {data.path} has squares of {size} pixels: prepare it with --size'
      f' {data.resize_size}, or give --config.data.resize_size={size} and a'
      f' --config.data.crop_size to go with it (now {data.crop_size})'
    )
  options = {'unreadable': data.unreadable, 'num_threads': data.num_threads}
  options['channels'] = data.channels
  return loader_lib.Loader(source, size, **options, **hint)


def make_model(config, num_classes: int, device=None) -> AlexNet:
  """Returns the network of the config, for a device (None: those here).

  Raises UserError if num_classes or the number of class weights is another.
  """
  fields, given = config.model.to_dict(), config.model.num_classes
  if given not in (0, num_classes):
    is_synthetic = config.data.source == 'synthetic'
    hint = f', or config.data.synthetic_classes to {given}' * is_synthetic
    raise UserError(
      f'config.model.num_classes is {given}, but the data has {num_classes}'
      f' classes; set it to {num_classes} or 0{hint}'
    )
  weights = tuple(config.loss.class_weights)
  if weights != ('balanced',) and len(weights) not in (0, num_classes):
    raise UserError(
      f'config.loss.class_weights has {len(weights)} numbers, but the data has'
      f' {num_classes} classes; give one for each'
    )
  platform = (device or jax.devices()[0]).platform
  fields |= {
    'num_classes': num_classes,
    'dtype': jnp.dtype(fields['dtype']),
    'axis_name': parallel.AXIS,
    'implementation': resolve_implementation(config.implementation, platform),
  }
  return AlexNet(**fields)


def image_shape(config) -> tuple[int, int, int]:
  """Returns (height, width, channels) of the crops."""
  data = config.data
  return (data.crop_size, data.crop_size, data.channels)


def mean_shape(config) -> tuple[int, ...]:
  """Returns the shape of the subtracted mean: of the crops, or (channels,)."""
  shape = image_shape(config)
  return shape if config.data.mean == 'image' else shape[2:]


def make_state(config, model: AlexNet) -> state_lib.TrainState:
  """Returns a fresh state, a function of config.seed."""
  multipliers = tuple(config.schedule.lr_multipliers)
  tx = optimizer.make_optimizer(**config.optimizer, lr_multipliers=multipliers)
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  try:
    return state_lib.create_train_state(
      model, tx, key, image_shape(config), ema=config.ema_decay > 0
    )
  except UserError:
    raise
  except (ValueError, TypeError, OverflowError) as error:  # of the network
    raise UserError(f'config.model: {error}') from error


def state_shapes(config, num_classes: int) -> state_lib.TrainState:
  """Returns `make_state` as shapes; UserError if they exceed the memory."""
  model = make_model(config, num_classes)
  shapes = jax.eval_shape(lambda: make_state(config, model))
  leaves = jax.tree.leaves(state_lib.saved_tree(shapes))
  size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
  if size > (room := os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')):
    raise UserError(
      f'the state of this network has {size / 1e9:,.0f} GB, and this machine'
      f' {room / 1e9:,.0f} GB of memory; lower config.model.hidden, channels or'
      f' width_multiplier, or the number of classes ({num_classes:,})'
    )
  return shapes


def find_num_classes(config) -> int:
  """Returns the number of classes of the config, or of its data."""
  given = config.model.num_classes
  return given or len(make_source(config, 'train').class_names)


def network_layers(config, num_classes: int):
  """Returns `costs.layer_table` of the network; raises UserError of none."""
  model = make_model(config, num_classes)
  try:
    return costs.layer_table(model, image_shape(config))
  except ValueError as error:  # of the network's own checks
    raise UserError(f'config.model: {error}') from error


def network_costs(config, num_classes: int) -> dict[str, int]:
  """Returns `costs.totals` of the network; raises UserError of none."""
  return costs.totals(*network_layers(config, num_classes))


def mfu_per_image(config, num_classes: int, mesh: Mesh) -> float | None:
  """Returns the model FLOPs utilization (MFU) of one image per second.

  That is a share of the peak of all devices; None where it is not known, or
  some parameters are frozen, whose gradients cost nothing.
  """
  peak = costs.gpu_peak(mesh.devices.flat[0].device_kind, config.model.dtype)
  if peak is None or config.init.freeze:
    return None
  flops = network_costs(config, num_classes)['training_flops_per_image']
  return flops / (mesh.size * peak[0])


def dropout_key(config) -> jax.Array:
  """Returns the key that train_step folds step and example into, uint32 [2]."""
  # As numbers: in several processes pmap copies a typed key at every call.
  key = jax.random.key(config.seed, impl=step.KEY_IMPL)
  return jax.random.key_data(jax.random.fold_in(key, 1))


def with_class_weights(config, source):
  """Returns the config with numbers in place of `balanced` class weights.

  `source` is the training split. Raises UserError if it lacks a class.
  """
  if tuple(config.loss.class_weights) != ('balanced',):
    return config
  names = source.class_names
  counts = np.bincount(splits.read_labels(source), minlength=len(names))
  if not counts.all():
    raise UserError(
      f'config.loss.class_weights is balanced, but {source.name} has no'
      f' {names[counts.argmin()]!r}: give numbers, or remove that class'
    )
  config = config.copy_and_resolve_references()
  weights = counts.sum() / (len(names) * counts)
  config.loss.class_weights = tuple(weights.tolist())
  return config


def make_steps(
  config,
  mesh: Mesh,
  mean: np.ndarray,
  *,
  frozen: frozenset[str] = frozenset(),
  top: int = 5,
  crops: int = 1,
) -> Steps:
  """Returns the step functions; to train see `with_class_weights` first.

  `mean` (see `pixel_statistics.Statistics`) is subtracted, parameters named in
  `frozen` do not train; `evaluate` predicts the `top` best classes of an image,
  from the mean over 1 or 10 `crops`.
  """
  options = step.StepOptions(
    mean=mean,
    std=tuple(config.data.std_rgb) or config.data.std,
    **config.loss.to_dict(),
    frozen=frozen,
    microbatch_size=config.microbatch_size,
    ema_decay=config.ema_decay,
    grad_allreduce_dtype=config.grad_allreduce_dtype,
  )
  crop_size = config.data.crop_size if crops > 1 else 0

  def mapped(function, donate_state=False, **more):
    function = functools.partial(function, options=options, **more)
    return parallel.map_over_devices(
      function, mesh, config.parallel, donate_state=donate_state
    )

  return Steps(
    train=mapped(step.train_step, donate_state=True),
    evaluate=mapped(step.eval_step, top=top, crop_size=crop_size),
    features=functools.cache(
      lambda layers: mapped(step.feature_step, layers=layers)
    ),
  )


def make_train_step(
  config: ml_collections.ConfigDict,
  num_classes: int,
  mean: Sequence[float] = (),
) -> tuple[state_lib.TrainState, Callable[..., Any]]:
  """Returns a fresh state, and the compiled step of a loop of one's own.

  `train_step(state, batch)` makes one update on all devices and returns (state
  after, sums over the batch, see `metrics.example_sums`); the state before is
  gone. The learning rate is that of the config until `state.with_learning_rate`
  sets another.

  Args:
    config: see `load_config`; network, loss, optimizer and data.std count.
    num_classes: of the labels.
    mean: subtracted from the pixels, by channel, as levels from 0 to 255; may
      be left out if config.data says it: mean_rgb, or no mean.

  Raises:
    UserError: if the network, the batch size or config.init does not fit.
  """
  if config.init.workdir or config.init.freeze:
    raise UserError(
      'config.init has no effect on a step of its own; use `train`'
    )
  if config.data.pca_lighting or config.data.mean == 'image':
    raise UserError(
      'config.data.pca_lighting and the mean image need the data; use `train`'
    )
  count, own = config.data.channels, config.data.mean_rgb
  own = (0.0,) * count if config.data.mean == 'none' else own
  if len(mean := tuple(mean) or tuple(own)) != count:
    raise UserError(f'mean is {mean}; give {count} levels of pixels, of 255')
  if tuple(config.loss.class_weights) == ('balanced',):
    raise UserError('config.loss.class_weights is balanced; here give numbers')
  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  steps = make_steps(config, mesh, np.asarray(mean, np.float32))
  state = make_state(config, make_model(config, num_classes))
  key = parallel.replicate(dropout_key(config), mesh)

  def train_step(state, batch):
    batch = parallel.batch_to_devices(batch, mesh, config.parallel)
    return steps.train(state, batch, key)

  return parallel.replicate(state, mesh), train_step


def make_train_iter(
  config, loader, num_steps: int, mesh: Mesh, lighting: np.ndarray | None = None
):
  """Returns this process's part of the batches of the training split.

  For `lighting` see `pixel_statistics.Statistics`.
  """
  data, shift = config.data, None
  if data.pca_lighting:
    shrink = data.pca_lighting if data.pca_lighting_shrink else 0.0
    durations = schedule.resolve_durations(config, loader.source.num_examples)
    until = durations.pca_lighting_steps
    shift = augment.Lighting(lighting, until, 1 / (1 + shrink))
  crop = augment.Crop(
    data.crop_size, data.crop, tuple(data.crop_area), tuple(data.crop_ratio)
  )
  own = {'crop': crop, 'lighting': shift, 'mirrors_on_host': False}
  fields = {field.name for field in dataclasses.fields(augment.Augmentation)}
  keys = {name: data[name] for name in fields - own.keys()}
  dataset = pipeline.train_dataset(
    loader,
    augment.Augmentation(**own, **keys),
    _batching(config, mesh, config.global_batch_size),
    num_steps=num_steps,
    seed=config.seed,
    scaled_decoding=data.scaled_decoding,
  )
  return iter(dataset)


def make_eval_iter(config, loader, mesh: Mesh, crops: int = 1):
  """Returns batches of `eval_batch_size`; whole squares for 10 crops."""
  size = loader.resize_size if crops > 1 else config.data.crop_size
  batching = _batching(config, mesh, eval_batch_size(config, mesh))
  return iter(pipeline.eval_dataset(loader, size, batching))


def _batching(config, mesh, global_batch_size):
  part = parallel.process_part(mesh)
  return pipeline.Batching(global_batch_size, config.data.prefetch, *part)


def eval_batch_size(config, mesh: Mesh) -> int:
  """Returns the size of an evaluation batch, over all devices.

  It is that of training, or what they compute at a time; they share it evenly.
  """
  count = -(-config.global_batch_size // mesh.size)
  return min(count, config.microbatch_size or count) * mesh.size


def num_microbatches(config, mesh: Mesh) -> int:
  """Returns the number of microbatches of each device's part of a batch.

  Raises UserError if it is much larger than config.microbatch_size asks for.
  """
  count, size = config.global_batch_size // mesh.size, config.microbatch_size
  number = step.num_microbatches(count, size)
  if size and number > 2 * math.ceil(count / size):
    raise UserError(
      f'config.microbatch_size is {size}, but the {count} examples of a'
      f' device divide only into {number} microbatches of {count // number};'
      ' take a config.global_batch_size with more divisors'
    )
  return number


def pixel_options(config) -> pixel_statistics.Options:
  """Returns which statistics of pixels the config wants."""
  return pixel_statistics.Options(
    mean=config.data.mean,
    crop_size=config.data.crop_size,
    channels=config.data.channels,
    mean_rgb=tuple(config.data.mean_rgb),
    lighting=config.data.pca_lighting,
    lighting_unit=config.data.pca_lighting_unit,
  )


def find_pixel_statistics(
  config, loader, workdir, progress=lambda done: None, limit=None
) -> pixel_statistics.Statistics:
  """Returns the pixel statistics of a run; computes them if needed."""
  options = pixel_options(config)
  return pixel_statistics.find_statistics(
    options, loader, workdir, progress=progress, limit=limit
  )


def stored_mean(config, workdir) -> np.ndarray:
  """Returns what a finished run subtracts; see `pixel_statistics`."""
  return pixel_statistics.stored(pixel_options(config), workdir).mean


def stored_lighting(config, workdir) -> np.ndarray | None:
  """Returns the matrix of a finished run's PCA lighting, if it has any."""
  return pixel_statistics.stored(pixel_options(config), workdir).lighting


def check_examples(config, training, held_out) -> None:
  """Raises UserError if there are too few examples or classes, or others."""
  num_classes = len(training.class_names)
  make_model(config, num_classes)  # refuses a wrong number of classes
  if num_classes < 2:
    raise UserError(f'{training.name} has one class; two are needed at least')
  if not held_out.num_examples:
    raise UserError(f'{held_out.name} has no examples')
  check_disjoint(training, held_out)
  if training.num_examples < config.global_batch_size:
    raise UserError(
      f'config.global_batch_size is {config.global_batch_size}, but there are'
      f' {training.num_examples} training examples; lower it, and with it'
      ' config.optimizer.learning_rate'
    )


def data_record(config, train_source, eval_source) -> DataRecord:
  """Returns what must not change under a run."""
  size, count = config.global_batch_size, train_source.num_examples
  return DataRecord(
    class_names=list(train_source.class_names),
    fingerprint=train_source.fingerprint,
    num_examples=count,
    eval_fingerprint=eval_source.fingerprint,
    eval_num_examples=eval_source.num_examples,
    global_batch_size=size,
    seed=config.seed,
    order=order.digest(count, size, config.seed),
  )
