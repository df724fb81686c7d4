"""Our train and evaluation step, as training runs them, for `bench step`."""

import jax
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.bench import peaks
from alexnet_jax.bench import step_agreement
from alexnet_jax.bench import step_hlo
from alexnet_jax.evaluation import summary
from alexnet_jax.training import build
from alexnet_jax.training import parallel

_MEAN = 120.0  # of the pixels


def make_batch(config, num_classes: int) -> dict[str, np.ndarray]:
  """A batch as the loader makes it, of noise.

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

  def __init__(self, name: str, task: dict):
    """See `step.make_task`."""
    del name  # the config has it
    self.config = config_lib.from_dict(task['config'])
    self._num_classes = task['num_classes']
    self._mesh = parallel.make_mesh()
    parallel.check_batch_size(self.config.global_batch_size, self._mesh.size)
    shape = build.pixel_options(self.config).mean_shape
    self.mean = np.full(shape, _MEAN, np.float32)
    self._model = build.make_model(self.config, self._num_classes)
    self.state = self._replicate(build.make_state(self.config, self._model))
    self._steps = build.make_steps(self.config, self._mesh, self.mean)
    self._key = self._replicate(build.dropout_key(self.config))
    self.batch = make_batch(self.config, self._num_classes)
    self._on_devices = self._to_devices(self.batch)
    unmirrored = {k: v for k, v in self.batch.items() if k != 'flip'}
    mask = np.ones(self.config.global_batch_size, bool)
    self._eval_batch = self._to_devices({**unmirrored, 'mask': mask})

  def _replicate(self, tree):
    return parallel.replicate(tree, self._mesh)

  def _to_devices(self, batch):
    return parallel.batch_to_devices(batch, self._mesh, self.config.parallel)

  def describe(self) -> dict:
    """What there is to know without computing."""
    shape = build.image_shape(self.config)
    params, rows = summary.layer_table(self._model, shape)
    device = jax.devices()[0]
    return {
      **summary.totals(params, rows),
      'platform': device.platform,
      'device_kind': device.device_kind,
      'device_count': self._mesh.size,
    }

  def train(self) -> dict:
    """Starts an update; the sums of the batch before it."""
    self.state, sums = self._steps.train(
      self.state, self._on_devices, self._key
    )
    return sums

  def _evaluate(self):
    return self._steps.evaluate(self.state, self._eval_batch)

  def step(self, what: str) -> dict:
    """Starts a step, train or evaluate; its sums, which may not be there."""
    return {'train': self.train, 'evaluate': self._evaluate}[what]()

  def loss(self, sums: dict) -> float:
    """The mean loss of a step, once all devices have done it."""
    jax.block_until_ready(sums)
    return float(sums['loss']) / float(sums['count'])

  def compiled(self, what: str) -> dict:
    """FLOPs and memory of the compiled program.

    Returns:
      {flops: of one device's convolutions and matrix products in a step, see
      `step_hlo.count`; uncounted: custom calls that may hide others;
      cost_analysis_flops; memory: bytes by kind}.
    """
    function, arguments = {
      'train': (self._steps.train, (self._on_devices, self._key)),
      'evaluate': (self._steps.evaluate, (self._eval_batch,)),
    }[what]
    if not hasattr(function, 'lower'):  # pmap: the same, within a jit
      donated = (0,) if what == 'train' else ()
      function = jax.jit(function, donate_argnums=donated)
    program = function.lower(self.state, *arguments).compile()
    costs = program.cost_analysis() or {}
    flops, uncounted = step_hlo.count(program.as_text())
    return {
      'flops': flops,
      'uncounted': uncounted,
      'cost_analysis_flops': costs.get('flops'),
      'memory': _memory(program.memory_analysis()),
    }

  def peak(self) -> float | None:
    """FLOP/s of matrix products; None if it is no CPU that computes."""
    if jax.devices()[0].platform != 'cpu':
      return None
    return peaks.of_cpu(self.config.model.dtype)

  def device_peak(self) -> int | None:
    """Largest memory in use on a device so far; None on the CPU."""
    stats = [device.memory_stats() for device in self._mesh.devices.flat]
    peak = [s['peak_bytes_in_use'] for s in stats if s]
    return max(peak, default=None)


def _memory(analysis):
  if analysis is None:
    return None
  names = ('argument', 'output', 'alias', 'temp', 'generated_code')
  return {n: getattr(analysis, f'{n}_size_in_bytes') for n in names}


def check(name: str, task: dict, folder: str) -> dict:
  """Writes weights and a batch, and trains on them; see `step_agreement`."""
  runner = Runner(name, task)
  images = runner.batch['image'].astype(np.float32)
  if 'flip' in runner.batch:
    flipped = runner.batch['flip'][:, None, None, None]
    images = np.where(flipped, images[:, :, ::-1], images)
  step_agreement.write(
    folder,
    jax.device_get(runner.state.params),
    (images - runner.mean) / np.float32(task['config']['data']['std']),
    runner.batch['label'],
  )
  losses = []
  for _ in range(step_agreement.STEPS):
    sums = jax.device_get(runner.train())
    losses.append(float(sums['loss']) / float(sums['count']))
  return {'losses': losses, **runner.describe()}
