"""Our train and evaluation step, as training runs them, and their costs."""

from collections.abc import Callable

import jax
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import summary
from alexnet_jax.training import build
from alexnet_jax.training import parallel

_MEAN = 120.0  # of the pixels


def num_classes(config) -> int:
  """Returns the number of classes of the config, or of its data."""
  if config.model.num_classes:
    return config.model.num_classes
  return len(build.make_source(config, 'train').class_names)


def network_costs(config, num_classes: int) -> dict[str, int]:
  """Returns {parameters, forward_ and training_flops_per_image}.

  They follow from the network's shapes, without computing it.

  Raises:
    UserError: if config.model makes no network.
  """
  model = build.make_model(config, num_classes)
  try:
    layers = summary.layer_table(model, build.image_shape(config))
  except ValueError as error:  # of the network's own checks
    raise UserError(f'config.model: {error}') from error
  return summary.totals(*layers)


def batch_structs(config) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns a global batch of the config's training as ShapeDtypeStructs.

  It has the keys, shapes and dtypes of the first batch that the loader makes of
  a few synthetic images.
  """
  few = config.copy_and_resolve_references()
  few.global_batch_size = 1
  few.data.source, few.data.synthetic_examples = 'synthetic', 8
  few.data.folds = 0
  mesh = parallel.make_mesh()
  matrix = np.zeros((3, 3), np.float32) if few.data.pca_lighting else None
  loader = build.make_loader(few, 'train')
  batch = next(build.make_train_iter(few, loader, 1, mesh, matrix))
  return {
    name: jax.ShapeDtypeStruct(
      (config.global_batch_size, *np.shape(array)[1:]), array.dtype
    )
    for name, array in batch.items()
  }


def make_steps(kind: str, task: dict, start) -> tuple[Callable, dict]:
  """Builds state, batch and step functions; see `step_peers.make_steps`.

  The batch is noise as the loader makes it: uint8, mirrored in the step. `kind`
  and `start` mean nothing: the config says all, and the others begin with what
  this one returns as `start`.

  Returns:
    (run, {parameters, forward_ and training_flops_per_image, platform,
    device_kind, device_count, start: if the task says `compare`}).
  """
  del kind, start
  config = config_lib.from_dict(task['config'])
  classes, count = task['num_classes'], config.global_batch_size
  mesh = parallel.make_mesh()
  parallel.check_batch_size(count, mesh.size)
  mean = np.full(build.mean_shape(config), _MEAN, np.float32)
  steps = build.make_steps(config, mesh, mean)
  state = build.make_state(config, build.make_model(config, classes))
  state = parallel.replicate(state, mesh)
  key = parallel.replicate(build.dropout_key(config), mesh)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (count, *build.image_shape(config)), np.uint8)
  label = rng.integers(0, classes, count, np.int32)
  flip = rng.random(count) < (0.5 if config.data.random_flip else 0)
  flips = {'flip': flip} if config.data.random_flip else {}
  train_batch, eval_batch = (
    parallel.batch_to_devices(
      {'image': image, 'label': label, **more}, mesh, config.parallel
    )
    for more in (flips, {'mask': np.ones(count, bool)})
  )

  def run(part, number):
    nonlocal state
    for _ in range(number):
      if part == 'train':
        state, sums = steps.train(state, train_batch, key)
      else:
        sums = steps.evaluate(state, eval_batch)
    jax.block_until_ready(sums)  # on all devices
    return float(sums['loss']) / float(sums['count'])

  device = jax.devices()[0]
  facts = {
    **network_costs(config, classes),
    'platform': device.platform,
    'device_kind': device.device_kind,
    'device_count': mesh.size,
  }
  if task.get('compare'):
    pixels = np.where(flip[:, None, None, None], image[:, :, ::-1], image)
    pixels = (pixels.astype(np.float32) - mean) / np.float32(config.data.std)
    facts['start'] = jax.device_get(state.params), pixels, label
  return run, facts
