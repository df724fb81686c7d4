"""Mean image and color covariance of a training split, kept with the run."""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import threading
import zipfile

import numpy as np

from alexnet_jax import files
from alexnet_jax.data import augment, images
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError

MEAN_FILE = 'pixel_mean.npz'
_CHUNK = 512  # examples between two reports of progress
_UNREADABLE = OSError, ValueError, TypeError, EOFError, KeyError
_UNREADABLE += (zipfile.BadZipFile,)


@dataclasses.dataclass(frozen=True)
class Options:
  """The statistics that a run uses."""

  mean: str  # `channel` or `image` is subtracted, of the training split; `none`
  crop_size: int  # of the network's input, in pixels
  channels: int = 3  # 1: of gray images
  mean_rgb: tuple[float, ...] = ()  # is subtracted instead, if not empty
  lighting: float = 0.0  # standard deviation of PCA lighting; 0: none
  lighting_unit: str = 'eigenvalue'  # see `augment.lighting_matrix`

  @property
  def mean_is_computed(self) -> bool:
    """True if the mean comes from images."""
    return self.mean != 'none' and not self.mean_rgb


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Statistics of the training split, as the options want them."""

  # Is subtracted, float32 [channels] or [crop, crop, channels].
  mean: np.ndarray
  lighting: np.ndarray | None  # float32 [3, 3], see `augment.lighting_matrix`


def find_statistics(
  options: Options,
  loader: Loader,
  workdir,
  *,
  progress: Callable[[int], None] = lambda done: None,
  limit: int | None = None,
) -> Statistics:
  """Returns the statistics of a split, kept in `workdir/pixel_mean.npz`.

  They are computed in one pass over the split, once. Every crop loses the
  center of the mean image, wherever the crop itself was taken.

  Args:
    options: see `Options`.
    loader: of the training split.
    workdir: the run's folder.
    progress, limit: see `compute`; with a limit nothing is kept.
  """
  if not (options.mean_is_computed or options.lighting):
    return no_statistics(options)
  path = pathlib.Path(workdir) / MEAN_FILE
  origin = [loader.source.fingerprint, loader.resize_size, options.mean]
  origin += ['gray'] * (options.channels == 1)
  origin = json.dumps(origin)
  kept = _load(path, options.channels)
  has_all = 'covariance' in kept or not options.lighting
  if str(kept.get('of')) == origin and has_all:
    return _wanted(options, kept)
  mean, covariance = _known(options, loader) or compute(
    loader, progress=progress, limit=limit
  )
  found = {'mean': mean, 'covariance': covariance}
  if limit is None:
    with files.replaced_file(path) as temporary, temporary.open('wb') as file:
      np.savez(file, **found, of=origin)
  return _wanted(options, found)


def no_statistics(options: Options) -> Statistics:
  """Returns zeros with the shapes of what `find_statistics` returns."""
  shape = options.crop_size, options.crop_size, options.channels
  zeros = {'mean': np.zeros(shape), 'covariance': np.zeros((3, 3))}
  return _wanted(options, zeros)


def stored(options: Options, workdir) -> Statistics:
  """Returns the statistics of a finished run; UserError if one is missing."""
  path = pathlib.Path(workdir) / MEAN_FILE
  needed = ['mean'] * options.mean_is_computed
  needed += ['covariance'] * bool(options.lighting)
  found = _load(path, options.channels) if needed else {}
  for name in needed:
    if name not in found:
      raise UserError(
        f'the {name} of the run, in {path}, is missing or damaged; start its'
        ' training command again to make it anew'
      )
  return _wanted(options, found)


def _load(path, channels):
  """Returns {mean, of, covariance (if any)}; {} if missing or damaged."""
  files.refuse_special_file(path)
  try:
    with np.load(path) as stored:
      names = ('mean', 'of', *({'covariance'} & set(stored.files)))
      found = {name: stored[name] for name in names}
    height, width, colors = found['mean'].shape
    covariance = found.get('covariance', np.eye(3))
    fits = height == width and (colors, *covariance.shape) == (channels, 3, 3)
    finite = np.isfinite(found['mean']).all() and np.isfinite(covariance).all()
    return found if fits and finite else {}
  except _UNREADABLE:
    return {}


def _known(options, loader):
  """Returns (mean, covariance) that a raw set carries, if they are enough."""
  source = loader.source
  mean = getattr(source, 'rgb_mean', None)  # a fold has none
  # That of a color set says too little of its luma, which is rounded.
  same = getattr(source, 'channels', 3) in (1, loader.channels)
  fits = getattr(source, 'square_size', None) == loader.resize_size
  if options.mean == 'image' or not (fits and same) or mean is None:
    return None
  return mean[None, None, : loader.channels], source.rgb_covariance


def _wanted(options, found):
  """Returns what the options want of {mean, covariance}."""
  if options.mean == 'none':
    mean = np.zeros(options.channels)
  elif options.mean_rgb:
    mean = np.array(options.mean_rgb)
  elif options.mean == 'channel':
    mean = found['mean'].mean((0, 1))
  else:
    mean = images.center_crop(found['mean'], options.crop_size)
  lighting = None
  if options.lighting:
    lighting = augment.lighting_matrix(
      found['covariance'], options.lighting, options.lighting_unit
    ).astype(np.float32)
  return Statistics(mean.astype(np.float32), lighting)


def compute(
  loader: Loader,
  *,
  progress: Callable[[int], None] = lambda done: None,
  limit: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean image of a split and the covariance of its RGB.

  Of gray squares red, green and blue are the same.

  Args:
    loader: reads the split; its squares are averaged, in one pass.
    progress: called now and then with the number of examples done.
    limit: uses the first `limit` examples only; None: all.

  Returns:
    (mean, covariance): float64 [size, size, channels] and [3, 3], in levels of
    255.

  Raises UserError if no image can be decoded.
  """
  from alexnet_jax.data import kernels  # slow to import

  # Sums of integers are exact in any order, whatever thread comes first.
  shape = (loader.resize_size, loader.resize_size, loader.channels)
  total = np.zeros(shape, np.uint64)
  sums, products = np.zeros(3, np.int64), np.zeros((3, 3), np.int64)
  counted, lock = 0, threading.Lock()

  def add(first, last):
    nonlocal counted
    partial, count = np.zeros(shape, np.uint32), 0
    own = np.zeros(3, np.int64), np.zeros((3, 3), np.int64)
    for index in range(first, last):
      if example := loader.square(index):
        np.add(partial, example[0], out=partial)
        kernels.add_color_sums(images.as_rgb(example[0]), *own)
        count += 1
    with lock:
      np.add(total, partial, out=total)
      np.add(sums, own[0], out=sums)
      np.add(products, own[1], out=products)
      counted += count

  num_examples = loader.source.num_examples
  num_examples = min(limit or num_examples, num_examples)
  for start in range(0, num_examples, _CHUNK):
    count = min(_CHUNK, num_examples - start)
    loader.for_each(
      lambda a, b, start=start: add(start + a, start + b), count, chunk=32
    )
    progress(start + count)
  if not counted:
    raise UserError(f'no image of {loader.source.name} can be decoded')
  rgb = color_statistics(counted * shape[0] ** 2, sums, products)
  return total / counted, np.array(rgb['covariance'])


def color_statistics(
  pixels: int, sums: np.ndarray, products: np.ndarray
) -> dict:
  """Returns {pixels, sums, products, mean, covariance} of RGB, in lists.

  The exact sums over `pixels` pixels are int64 [3], of each channel, and
  [3, 3], of each pair of channels.
  """
  # Python's integers do not overflow; only the division rounds.
  sums, products = np.array(sums, object), np.array(products, object)
  covariance = (pixels * products - np.outer(sums, sums)) / pixels**2
  return {
    'pixels': pixels,
    'sums': sums.tolist(),
    'products': products.tolist(),
    'mean': (sums / pixels).tolist(),
    'covariance': covariance.tolist(),
  }
