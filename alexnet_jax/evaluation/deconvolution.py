"""Finds what units respond to: patches, deconvolution, occlusion.

Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks:
sections 2.1 (deconvolution), 4 (strongest patches) and 4.2 (occlusion).

A unit is a channel of a convolution; its output is what the activation gives.
Deconvolution takes one output of a unit, all others being 0, back to the pixels
through the inverse of each operation:

- Convolution: the transposed convolution without bias, each group by itself.
- Max-pooling: a number goes back to where the maximum of its window was, the
  first of several; where windows share a maximum, their numbers add up.
- ReLU: it rectifies what comes back, whatever its input was, unlike a gradient.
- Normalization and tanh: the factor of the way forth counts as a constant
  (response normalization: (k + alpha * sum) ** -beta; batch norm: scale /
  sqrt(variance + epsilon); tanh: 1).

All but the ReLU are transposes of a linear map, so one backward pass of
automatic differentiation does them.
"""

from collections.abc import Iterable
import functools
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import features
from alexnet_jax.models import layers
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.training import build, measure, preprocess

GRAY = 128  # of the square that occludes, of 255
_OCCLUDED = 32  # images in a batch
_RESPONSE_NORMS = layers.LocalResponseNorm, layers.SpatialResponseNorm


class Strongest(NamedTuple):
  """The largest outputs of each unit of a convolution, at most one an image.

  Arrays [units, n], the largest first; of equal ones the earlier image.
  """

  values: np.ndarray  # float32
  images: np.ndarray  # int64: indices in the split
  positions: np.ndarray  # int [units, n, 2]: row and column of the output


class Classifier:
  """A trained network on one device, and how it wants its pixels.

  Images are uint8 [n, size, size, channels].
  """

  def __init__(self, model: AlexNet, variables: dict, mean, std):
    """For `mean` and `std` see `preprocess.normalize`."""
    self.model, self.variables = model, variables
    normalize = functools.partial(preprocess.normalize, mean=mean, std=std)

    def probabilities(variables, images):
      return jax.nn.softmax(model.apply(variables, normalize(images)))

    def peaks(variables, images):
      found = []
      for outputs in _outputs(model, variables, normalize(images)):
        flat = outputs.reshape(len(images), -1, outputs.shape[-1])
        place = jnp.divmod(flat.argmax(1), outputs.shape[2])
        found.append((flat.max(1).astype(jnp.float32), jnp.stack(place, 2)))
      return found

    def deconvolve(number, variables, images, units, positions):
      outputs, back = jax.vjp(
        lambda x: _outputs(model, variables, x)[number - 1], normalize(images)
      )
      chosen = (jnp.arange(len(images)), *positions.T, units)
      alone = jnp.zeros_like(outputs).at[chosen].set(outputs[chosen])
      return back(alone)[0]

    self._probabilities, self._peaks = jax.jit(probabilities), jax.jit(peaks)
    self._deconvolve = jax.jit(deconvolve, static_argnums=0)

  def probabilities(self, images: np.ndarray) -> np.ndarray:
    """Returns those of the classes, float32 [n, classes]."""
    return np.asarray(self._probabilities(self.variables, images))

  def find_strongest(
    self, batches: Iterable[dict], count: int
  ) -> list[Strongest]:
    """Finds the images, and the place in each, to which units respond most.

    Args:
      batches: all of a split, in its order; see `data.pipeline.eval_dataset`.
      count: images that are kept for each unit, or as many as there are.

    Returns one for each convolution; raises UserError if no image can be read.
    """
    results = (
      (b['mask'], self._peaks(self.variables, b['image'])) for b in batches
    )
    kept, first = [[] for _ in self.model.channels], 0  # parts, by layer
    for mask, found in measure.one_late(results):
      indices = first + np.flatnonzero(mask)
      first += len(mask)
      for parts, (values, places) in zip(
        kept, jax.device_get(found), strict=True
      ):
        images = np.broadcast_to(indices, (values.shape[1], len(indices)))
        parts.append((values[mask].T, images, places[mask].swapaxes(0, 1)))
        parts[:] = [features.largest(parts, count)]
    if not first or not kept[0][0][0].size:
      raise UserError('there is no image to look at, or none can be decoded')
    return [Strongest(*parts[0]) for parts in kept]

  def deconvolve(
    self,
    number: int,
    images: np.ndarray,
    units: np.ndarray,
    positions: np.ndarray,
  ) -> np.ndarray:
    """Takes one output of each image back to the pixels; see above.

    It is that of a unit of convolution `number` (from 1) at a row and column:
    int [n] and [n, 2]. Returns float32 of the shape of the images, in the scale
    of the network's input.
    """
    result = self._deconvolve(number, self.variables, images, units, positions)
    return np.asarray(result, np.float32)

  def occlude(
    self, image: np.ndarray, label: int, square: int, stride: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of a class while a gray square hides a part.

    Args:
      image: uint8 [size, size, channels].
      label: number of the class.
      square: width of the square, in pixels, at most that of the image.
      stride: from place to place; the last square lies at the edge.

    Returns:
      (first row, or column, that each square hides: int [n]; probabilities by
      them: float32 [n, n]).
    """
    last = len(image) - square
    first = np.array([*range(0, last, stride), last])
    places = [(top, left) for top in first for left in first]
    found = []
    for start in range(0, len(places), _OCCLUDED):
      batch = np.repeat(image[None], _OCCLUDED, 0)  # one program for all
      part = places[start : start + _OCCLUDED]
      for hidden, (top, left) in zip(batch, part, strict=False):
        hidden[top : top + square, left : left + square] = GRAY
      found.append(self.probabilities(batch)[: len(part), label])
    return first, np.concatenate(found).reshape(len(first), -1)


def classifier_of(run) -> Classifier:
  """Returns the network of a `loading.Network` on one device."""
  state, data = run.state, run.config.data
  variables = {'params': state.eval_params, 'batch_stats': state.batch_stats}
  device = run.mesh.devices.flat[0]
  variables = jax.device_put(jax.device_get(variables), device)
  mean = build.stored_mean(run.config, run.workdir)
  std = tuple(data.std_rgb) or data.std
  return Classifier(state.apply_fn.__self__, variables, mean, std)


def receptive_field(
  model: AlexNet, number: int, size: int
) -> tuple[int, int, int]:
  """Returns (width, stride, start) of the windows that units see, in pixels.

  Row r of the output of convolution `number`, from 1, sees `width` rows of an
  image of `size` from r * stride + start on; some may lie outside of it. What
  normalization takes from around is not counted.
  """
  width, stride, start = 1, 1, 0
  for layer in model.layers(size):
    if layer.name == f'relu{number}':
      break
    if layer.kind in ('conv', 'pool'):
      window, step, *_ = layer.numbers
      start -= layer.pads[0] * stride
      width += (window - 1) * stride
      stride *= step
  return width, stride, start


@jax.custom_vjp
def _rectify(x):
  return nn.relu(x)


_rectify.defvjp(lambda x: (nn.relu(x), None), lambda _, back: (nn.relu(back),))


def _outputs(model, variables, x) -> list[jax.Array]:
  """Returns the outputs of the units of all convolutions, in order.

  Their derivatives are those of deconvolution, see above.
  """
  found = []

  def intercept(call, args, kwargs, context):
    module, name = context.module, context.method_name
    if name == 'activate':
      x = args[0]
      y = lax.stop_gradient(call(x)) + (x - lax.stop_gradient(x))
      found.append(_rectify(x) if module.activation == 'relu' else y)
      return found[-1]
    if name == '__call__' and isinstance(module, _RESPONSE_NORMS):
      factor = lax.stop_gradient(module.factor(args[0]))
      return (args[0] * factor).astype(args[0].dtype)
    return call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    model.apply(variables, x)
  return found[: len(model.channels)]
