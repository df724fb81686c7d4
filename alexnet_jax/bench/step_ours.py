"""Our train and evaluation step, as training runs them, and their costs."""

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


def make_batch(config, num_classes: int) -> dict[str, np.ndarray]:
  """Returns a batch of noise, as the loader makes it.

  Returns:
    {image: uint8 [global_batch_size, crop_size, crop_size, 3], label: int32
    [global_batch_size], flip: bool [global_batch_size] if the config mirrors}.
  """
  rng = np.random.default_rng(0)
  count, shape = config.global_batch_size, build.image_shape(config)
  batch = {
    'image': rng.integers(0, 256, (count, *shape), np.uint8),
    'label': rng.integers(0, num_classes, count, np.int32),
  }
  if config.data.random_flip:
    batch['flip'] = rng.random(count) < 0.5
  return batch


class Runner:
  """State, batch and step functions on the devices."""

  def __init__(self, kind: str, task: dict):
    """Builds them; see `step.make_task`. The config has what `kind` names."""
    del kind
    config = self._config = config_lib.from_dict(task['config'])
    self._num_classes = task['num_classes']
    self._mesh = parallel.make_mesh()
    parallel.check_batch_size(config.global_batch_size, self._mesh.size)
    self._mean = np.full(build.mean_shape(config), _MEAN, np.float32)
    model = build.make_model(config, self._num_classes)
    self.state = self._replicate(build.make_state(config, model))
    self._steps = build.make_steps(config, self._mesh, self._mean)
    self._key = self._replicate(build.dropout_key(config))
    self._batch = make_batch(config, self._num_classes)
    self._train_batch = self._to_devices(self._batch)
    self._eval_batch = self._to_devices(
      {
        **{key: self._batch[key] for key in ('image', 'label')},
        'mask': np.ones(config.global_batch_size, bool),
      }
    )

  def _replicate(self, tree):
    return parallel.replicate(tree, self._mesh)

  def _to_devices(self, batch):
    return parallel.batch_to_devices(batch, self._mesh, self._config.parallel)

  def describe(self) -> dict:
    """Returns the network's costs and {platform, device_kind, device_count}."""
    device = jax.devices()[0]
    return {
      **network_costs(self._config, self._num_classes),
      'platform': device.platform,
      'device_kind': device.device_kind,
      'device_count': self._mesh.size,
    }

  def reference(self) -> tuple[dict, np.ndarray, np.ndarray]:
    """Returns (params, images, labels) for the others to begin with.

    Params are {layer: {kernel, bias}} as flax has them: kernels [height, width,
    in, out] and [in, out], where `in` of the first dense layer is a flattened
    [height, width, channels]. Images are float32 [batch, height, width, 3],
    mirrored and normalized.
    """
    images = self._batch['image'].astype(np.float32)
    if 'flip' in self._batch:
      flipped = self._batch['flip'][:, None, None, None]
      images = np.where(flipped, images[:, :, ::-1], images)
    images = (images - self._mean) / np.float32(self._config.data.std)
    return jax.device_get(self.state.params), images, self._batch['label']

  def train(self) -> dict:
    """Starts an update; returns the sums of the batch before it."""
    self.state, sums = self._steps.train(
      self.state, self._train_batch, self._key
    )
    return sums

  def evaluate(self) -> dict:
    """Starts the evaluation of the batch; returns its sums."""
    return self._steps.evaluate(self.state, self._eval_batch)

  def loss(self, sums: dict) -> float:
    """Waits for a step on all devices; returns its mean loss."""
    jax.block_until_ready(sums)
    return float(sums['loss']) / float(sums['count'])
