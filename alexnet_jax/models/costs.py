"""Costs of a network in FLOPs, and the peaks of GPUs, as data sheets have them.

FLOPs are those of convolutions and dense layers; a multiply-add counts as two,
and so it does in the peaks of gpus/*.toml, which are without sparsity: float32
is TF32 on tensor cores where a GPU has them, as XLA computes it there.
"""

import math
import pathlib
import tomllib

import jax
import jax.numpy as jnp

GPUS = pathlib.Path(__file__).parent / 'gpus'


def layer_table(model, image_shape):
  """Returns the parameters and layers of a network, without computing it.

  Args:
    model: an `AlexNet`.
    image_shape: (height, width, channels).

  Returns:
    (params, rows): params as ShapeDtypeStructs; a row is (name, output shape
    without the batch, multiply-adds per image), in order of execution.
  """
  names = []

  def run(key, images):
    made = model.init(key, images, mutable=True, capture_intermediates=True)
    made['intermediates'].pop('__call__')
    # In order of execution, which the result of a traced function has not.
    names[:] = made['intermediates']
    return made['params'], made['intermediates']

  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  params, outputs = jax.eval_shape(run, jax.random.key(0), images)
  rows = []
  for name in names:
    shape = jax.tree.leaves(outputs[name])[0].shape[1:]
    kernel = params.get(name, {}).get('kernel')
    positions = math.prod(shape[:-1])
    macs = 0 if kernel is None else positions * math.prod(kernel.shape)
    rows.append((name, shape, macs))
  return params, rows


def totals(params, rows) -> dict[str, int]:
  """Returns {parameters, forward_ and training_flops_per_image} of layers."""
  forward = 2 * sum(macs for *_, macs in rows)
  return {
    'parameters': count(params),
    'forward_flops_per_image': forward,
    # The gradients cost twice as much, but there is none for the image.
    'training_flops_per_image': 3 * forward - 2 * rows[0][2],
  }


def count(params) -> int:
  """Returns the number of parameters in a tree; 0 of None."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def gpu_peak(device_kind: str, dtype: str) -> tuple[float, str] | None:
  """Returns (FLOP/s, source) of a GPU as published; None if it is not known.

  Args:
    device_kind: as jax has it, such as 'NVIDIA H100 80GB HBM3'. The longest
      `kind` in gpus/*.toml whose words it contains counts.
    dtype: of the computation, float32 or bfloat16.
  """
  words = f' {device_kind} '.replace('-', ' ')
  found = [tomllib.loads(path.read_text()) for path in GPUS.glob('*.toml')]
  gpus = [gpu for content in found for gpu in content.get('gpus', [content])]
  fitting = [gpu for gpu in gpus if f' {gpu["kind"]} ' in words]
  gpu = max(fitting, key=lambda gpu: len(gpu['kind']), default={})
  others = {*words.split()} & {'MIG', 'Ti', 'D', 'Laptop', 'NVL', 'SUPER'}
  if others - {*gpu.get('kind', '').split()}:  # a part of it, or another GPU
    return None
  peak = gpu.get(f'{dtype}_peak')
  return peak and (peak['value'], peak.get('source') or gpu['source'])
