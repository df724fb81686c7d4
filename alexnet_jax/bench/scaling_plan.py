"""Data parallelism over GPUs on paper: bounds that are computed, not measured.

A step of n devices computes on n batches and then reduces the gradients once.
How long each of both takes follows from the network and from ASSUMPTIONS.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math

from alexnet_jax.errors import UserError

DEVICES = (8, 64, 1024)
DEVICE_BATCH_SIZES = (128, 512, 1024)


@dataclasses.dataclass(frozen=True)
class Assumption:
  """A number that the plan rests on; a flag of its name changes it.

  Attributes:
    name: of the flag.
    value: if no other is given.
    unit: of the value.
    source: where the value is from.
  """

  name: str
  value: float
  unit: str
  source: str


_DATA_SHEET = "NVIDIA's data sheet of the H100 SXM"
ASSUMPTIONS = (
  Assumption(
    *('bfloat16_peak', 989.0, 'TFLOP/s'),
    f'{_DATA_SHEET}: half of the 1,979 with sparsity',
  ),
  Assumption(
    *('float32_peak', 494.5, 'TFLOP/s'),
    f'{_DATA_SHEET}: half of the 989 of TF32 with sparsity; JAX computes'
    ' float32 in TF32 there',
  ),
  Assumption(
    *('peak_share', 0.25, 'of the peak'),
    'assumed; neither measured nor promised by anybody',
  ),
  Assumption('node_size', 8, 'GPUs', 'an HGX or DGX H100'),
  Assumption(
    *('node_bandwidth', 450.0, 'GB/s'),
    f'{_DATA_SHEET}: NVLink, half of the 900 of both directions',
  ),
  Assumption(
    *('network_bandwidth', 50.0, 'GB/s'),
    'InfiniBand NDR, 400 Gb/s for each GPU, as in a DGX H100',
  ),
  Assumption('latency', 0.0, 'µs', 'left out: of each step of a ring'),
)

FORMULAS = (
  'Reduction: a ring of n takes 2 (n - 1) / n x bytes / bandwidth + 2 (n - 1) x'
  ' latency (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms'
  ' for clusters of workstations). Over nodes: reduce-scatter in rings inside'
  ' the nodes, all-reduce of the shard that each GPU has then in rings across'
  ' the nodes, all-gather inside (Cho et al. 2019, BlueConnect).',
  'Computing: training FLOPs of an image x device batch / (peak x share).'
  ' Training costs 3 x forward, because the gradients of the weights and those'
  ' of the inputs cost as much each; the first layer has no gradient of its'
  ' input.',
  'Efficiency: computing / (computing + reduction) without overlap; computing /'
  ' (forward + the longer of backward and reduction) with perfect overlap.',
  'Left out: reading and decoding images, the update of the weights, any wait'
  ' for a slower device or a busy network.',
)


def ring_seconds(
  num_bytes: float, count: int, bandwidth: float, latency: float
) -> float:
  """Time of an all-reduce in a ring: reduce-scatter, then all-gather.

  Each of the 2 (count - 1) steps passes a piece of num_bytes / count on to the
  next one; see FORMULAS for the source.

  Args:
    num_bytes: what each member has before, and the sum of it afterwards.
    count: members of the ring.
    bandwidth: of each member in one direction, in bytes per second.
    latency: of each step, in seconds.
  """
  steps = 2 * (count - 1)
  return steps * (num_bytes / count / bandwidth + latency)


def reduction_seconds(
  num_bytes: float, devices: int, assumed: Mapping[str, float]
) -> float:
  """Time of an all-reduce over all devices, inside nodes and across them.

  Reduce-scatter and all-gather inside a node take as long together as an
  all-reduce there; see FORMULAS.

  Args:
    num_bytes: of the gradients of one device.
    devices: a number within one node, or of whole nodes.
    assumed: {name: value} of ASSUMPTIONS.

  Raises:
    UserError: if the last node would not be full.
  """
  inside = min(devices, int(assumed['node_size']))
  if devices % inside:
    raise UserError(
      f'--devices: {devices} is not a multiple of the {inside} devices of a'
      ' node (--node_size)'
    )
  latency = assumed['latency'] * 1e-6
  within = ring_seconds(
    num_bytes, inside, assumed['node_bandwidth'] * 1e9, latency
  )
  across = ring_seconds(
    num_bytes / inside,
    devices // inside,
    assumed['network_bandwidth'] * 1e9,
    latency,
  )
  return within + across


def ring_steps(devices: int, assumed: Mapping[str, float]) -> int:
  """Steps of `reduction_seconds`, one after the other."""
  inside = min(devices, int(assumed['node_size']))
  return 2 * (inside - 1) + 2 * (devices // inside - 1)


def network(config) -> dict[str, int]:
  """What the config's network costs, without computing it.

  Returns:
    {parameters, forward_flops_per_image, training_flops_per_image, see
    `summary.totals`; reduced_bytes: of the gradients in one step}.
  """
  import jax

  from alexnet_jax.evaluation import summary
  from alexnet_jax.training import build

  num_classes = config.model.num_classes or len(
    build.make_source(config, 'train').class_names
  )
  model = build.make_model(config, num_classes)
  try:
    params, rows = summary.layer_table(model, build.image_shape(config))
  except ValueError as error:  # of the network's own checks
    raise UserError(f'config.model: {error}') from error
  num_bytes = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)
  )
  return {**summary.totals(params, rows), 'reduced_bytes': num_bytes}


def plan(
  costs: Mapping[str, int],
  dtype: str,
  devices: Sequence[int],
  device_batch_sizes: Sequence[int],
  assumed: Mapping[str, float],
) -> list[dict]:
  """Bounds for every batch size and number of devices.

  Args:
    costs: see `network`.
    dtype: of the computation, float32 or bfloat16.
    devices: numbers of devices.
    device_batch_sizes: examples of each device in a step.
    assumed: {name: value} of ASSUMPTIONS.

  Returns:
    Rows {device_batch_size, devices, compute_seconds and reduction_seconds of a
    step, efficiency: without overlap, overlapped_efficiency}.

  Raises:
    UserError: see `reduction_seconds`.
  """
  rows = []
  training = costs['training_flops_per_image']
  speed = assumed[f'{dtype}_peak'] * 1e12 * assumed['peak_share']
  for batch_size in device_batch_sizes:
    compute = training * batch_size / speed
    forward = compute * costs['forward_flops_per_image'] / training
    for count in devices:
      reduction = reduction_seconds(costs['reduced_bytes'], count, assumed)
      overlapped = forward + max(compute - forward, reduction)
      rows.append(
        {
          'device_batch_size': batch_size,
          'devices': count,
          'compute_seconds': compute,
          'reduction_seconds': reduction,
          'efficiency': compute / (compute + reduction),
          'overlapped_efficiency': compute / overlapped,
        }
      )
  return rows


def assumed_values(given: Mapping[str, float | None]) -> dict[str, float]:
  """{name: value} of ASSUMPTIONS, or what is given instead.

  Raises:
    UserError: if a number makes no sense.
  """
  values = {}
  for assumption in ASSUMPTIONS:
    name, value = assumption.name, given.get(assumption.name)
    values[name] = value = assumption.value if value is None else value
    if name == 'latency':
      valid, rule = 0 <= value < math.inf, 'not be negative'
    else:
      valid, rule = 0 < value < math.inf, 'be above 0'
    if not valid:
      raise UserError(f'--{name} is {value:g}; it must {rule}')
  if values['peak_share'] > 1:
    raise UserError(f'--peak_share is {values["peak_share"]:g}, more than 1')
  return values
