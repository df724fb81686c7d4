"""PyTorch's trained networks: .safetensors, and .pth or .pt.

A file of `interop.save` says itself of which network it is and how images are
prepared. Others hold weights and names only: `--from torchvision` knows both of
torchvision's AlexNet, `--from torch` is told the network.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import logging
import os

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.interop import matching
from alexnet_jax.interop import metadata as metadata_lib
from alexnet_jax.interop import networks
from alexnet_jax.interop import reading
from alexnet_jax.interop import torch_layout
from alexnet_jax.interop import torch_storage
from alexnet_jax.interop.imported import Imported

# Of torchvision's weights, of pixels from 0 to 255: what its documentation
# gives for pixels from 0 to 1 (transforms of AlexNet_Weights.IMAGENET1K_V1),
# 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225, times 255.
TORCHVISION_MEAN = (123.675, 116.28, 103.53)
TORCHVISION_STD = (58.395, 57.12, 57.375)
TORCHVISION = 'alexnet_torchvision'


def read_torchvision(path: str | os.PathLike) -> Imported:
  """Weights of torchvision.models.alexnet, of any number of classes.

  Its images: the short side to 256 pixels, the middle 224 x 224, minus the mean
  and divided by the deviation of ImageNet's colors. torchvision interpolates
  with a triangle where images are made smaller here by averaging areas, so that
  pixels can differ by a few levels. Its average pooling to 6 x 6, which is left
  out here, leaves their last feature map as it is.

  Args:
    path: of a .safetensors, .pth or .pt file.

  Raises:
    UserError: see `read`.
  """
  with reading.naming(path):
    tensors, _ = torch_storage.load(path)
    levels = TORCHVISION_MEAN, TORCHVISION_STD
    return _imported(tensors, TORCHVISION, 0, levels, by_name=True)


def read(
  path: str | os.PathLike,
  network: str = '',
  *,
  crop_size: int = 0,
  mean: Sequence[float] = (),
  std: Sequence[float] = (),
) -> Imported:
  """Weights of any of the networks here, as PyTorch lays them out.

  Names may be those of `torch_layout`, or others: then the layers are matched
  by their kind (convolution, dense, batch norm) in the natural order of their
  names, and the pairs are shown. All shapes must fit; in a network with layers
  of equal shapes names in another order than the layers' would go unnoticed.

  float16, bfloat16 and float64 become float32 (float64 is rounded), which is
  said. `num_batches_tracked` is ignored.

  Args:
    path: of a .safetensors, .pth or .pt file. Of the latter only tensors are
      read; nothing in it is executed.
    network: a name of `models.variants`; '': what the file says.
    crop_size: width of images, in pixels; 0: what the network is meant for.
    mean: red, green and blue that are subtracted from pixels of 0 to 255; ():
      those of torchvision's weights, which is said of another network.
    std: what they are divided by then; (): likewise.

  Returns:
    The network. Where a file of `interop.save` has a mean image, `mean` is
    float32 [crop_size, crop_size, 3].

  Raises:
    UserError: if the file cannot be read, is damaged or of another kind, or its
      weights do not fit the network; with what was expected and found.
  """
  with reading.naming(path):
    tensors, text = torch_storage.load(path)
    if text is not None:
      return _described(tensors, text, network, crop_size or mean or std)
    if not network:
      raise UserError(
        'it does not say of which network it is (no metadata of'
        ' interop.save): name it with --network, such as'
        f' --network {TORCHVISION}'
      )
    levels = mean or TORCHVISION_MEAN, std or TORCHVISION_STD
    if network != TORCHVISION:
      levels = reading.pixel_levels(
        mean, std, TORCHVISION_MEAN, TORCHVISION_STD
      )
    return _imported(tensors, network, crop_size, levels)


def _described(tensors, text, network, prepared):
  """The network of a file that `interop.save` wrote."""
  described = metadata_lib.from_text(text)
  if network or prepared:
    raise UserError(
      'it says itself of which network it is and how images are prepared:'
      ' leave out --network, --crop_size, --mean and --std'
    )
  plan = torch_layout.layers(
    described.model, described.num_classes, described.data['crop_size']
  )
  params, batch_stats = torch_layout.from_torch(tensors, plan)
  return Imported(
    params=params,
    batch_stats=batch_stats,
    model=described.model,
    data=described.data,
    mean=described.mean,
    num_classes=described.num_classes,
    class_names=described.class_names,
  )


def _imported(tensors, network, crop_size, levels, by_name=False):
  """The network of a file that says nothing of itself."""
  model = networks.named_fields(network)
  say_dtypes(tensors)
  mean, std = levels
  sizes = networks.image_sizes(network, crop_size)
  head, num_classes = _head(tensors)
  plan = torch_layout.layers(model, num_classes, sizes['crop_size'])
  state = tensors if by_name else _renamed(tensors, plan, head)
  params, batch_stats = torch_layout.from_torch(state, plan)
  return Imported(
    params=params,
    batch_stats=batch_stats,
    model=model,
    data={**sizes, 'mean': 'channel', 'std': 1.0, 'std_rgb': tuple(std)},
    mean=np.array(mean, np.float32),
    num_classes=num_classes,
  )


def say_dtypes(tensors: Mapping) -> None:
  """Warns of numbers that become float32."""
  dtypes = {
    array.dtype.name
    for name, array in tensors.items()
    if name.rsplit('.', 1)[-1] != torch_layout.IGNORED
  } & {'float16', 'bfloat16', 'float64'}
  if dtypes:
    logging.getLogger(__name__).warning(
      'numbers of %s become float32', ', '.join(sorted(dtypes))
    )


def _head(tensors):
  """(name of the last dense layer, its outputs)."""
  widths = {
    name.rpartition('.')[0]: (array.shape[1], array.shape[0])
    for name, array in tensors.items()
    if array.ndim == 2
  }
  if not widths:
    raise UserError(
      'expected dense layers, tensors of two dimensions; found'
      f' {", ".join(list(tensors)[:10]) or "nothing"}'
    )
  head = matching.last_dense(widths)
  return head, widths[head][1]


def _renamed(tensors, plan, head):
  """The tensors by the names of `torch_layout`."""
  tensors = {
    name: array
    for name, array in tensors.items()
    if name.rsplit('.', 1)[-1] != torch_layout.IGNORED
  }
  wanted = {}
  for layer in plan:
    wanted |= layer.torch_shapes()
  if tensors.keys() == wanted.keys():
    return tensors
  groups = {}
  for name, array in tensors.items():
    layer, _, leaf = name.rpartition('.')
    groups.setdefault(layer, {})[leaf] = array
  pairs = matching.by_order(
    {
      name: (_kind(leaves), {leaf: a.shape for leaf, a in leaves.items()})
      for name, leaves in groups.items()
    },
    [(layer.torch_name, layer.kind, layer.shapes) for layer in plan],
    head,
  )
  names = {layer.torch_name: layer.name for layer in plan}
  logging.getLogger(__name__).warning(
    'layers were matched by kind and order: %s',
    ', '.join(f'{names[ours]} is {theirs}' for ours, theirs in pairs.items()),
  )
  return {
    f'{ours}.{leaf}': array
    for ours, theirs in pairs.items()
    for leaf, array in groups[theirs].items()
  }


def _kind(leaves):
  if 'running_mean' in leaves:
    return 'norm'
  ndim = leaves['weight'].ndim if 'weight' in leaves else None
  return {4: 'conv', 2: 'dense'}.get(ndim, 'layer of another kind')
