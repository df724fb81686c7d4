"""The mean of the pixels that a run subtracts: computed once, and kept."""

import json
import pathlib
import zipfile

import numpy as np

from alexnet_jax.data import averages
from alexnet_jax.data import images
from alexnet_jax.errors import UserError

MEAN_FILE = 'pixel_mean.npz'


def pixel_mean(config, loader, workdir, progress=lambda done: None, limit=None):
  """The mean that the config wants subtracted, float32 [3] or [h, w, 3].

  The mean image of the training split is computed once and kept in
  `workdir/pixel_mean.npz`. Of the mean image every crop loses the centre crop,
  wherever the crop itself was taken.

  Args:
    config: the config.
    loader: of the training split.
    workdir: the run's folder.
    progress: see `averages.pixel_mean`.
    limit: uses that many examples only, and keeps nothing; None: all.
  """
  if config.data.mean == 'none':
    return np.zeros(3, np.float32)
  path = pathlib.Path(workdir) / MEAN_FILE
  wanted = json.dumps(
    [loader.source.fingerprint, loader.resize_size, config.data.mean]
  )
  stored = _load_mean(path) if path.exists() else None
  if stored is not None and str(stored['of']) == wanted:
    return _subtracted(config, stored['mean'])
  mean = _known_mean(config, loader)
  if mean is None:
    mean = averages.pixel_mean(loader, progress=progress, limit=limit)
  if limit is None:
    temporary = path.with_suffix('.tmp.npz')
    np.savez(temporary, mean=mean, of=wanted)
    temporary.replace(path)
  return _subtracted(config, mean)


def shape(config) -> tuple[int, ...]:
  """Of `pixel_mean`."""
  if config.data.mean == 'image':
    return (config.data.crop_size, config.data.crop_size, 3)
  return (3,)


def _known_mean(config, loader):
  """The mean that a raw set carries, float64 [1, 1, 3]; None if there is none.

  It is that of the squares that training sees: no pass over them is needed.
  Where training sees a part of them (cross-validation) there is none.
  """
  mean = getattr(loader.source, 'rgb_mean', None)
  fits = getattr(loader.source, 'square_size', None) == loader.resize_size
  if config.data.mean == 'channel' and fits and mean is not None:
    return mean.reshape(1, 1, 3)
  return None


def stored_pixel_mean(config, workdir) -> np.ndarray:
  """The mean of a run that was trained already; see `pixel_mean`.

  Raises:
    UserError: if the run's folder lacks it.
  """
  if config.data.mean == 'none':
    return np.zeros(3, np.float32)
  path = pathlib.Path(workdir) / MEAN_FILE
  stored = _load_mean(path) if path.is_file() else None
  if stored is None:
    raise UserError(
      f'{path}, which the run subtracts from images, is missing or damaged;'
      ' start the training command again to make it anew'
    )
  return _subtracted(config, stored['mean'])


def _load_mean(path):
  """{mean, of} of a file; None if it is damaged."""
  try:
    with np.load(path) as stored:
      return {name: stored[name] for name in ('mean', 'of')}
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
    return None


def _subtracted(config, mean_image):
  if config.data.mean == 'channel':
    return mean_image.mean((0, 1)).astype(np.float32)
  crop = images.centre_crop(mean_image, config.data.crop_size)
  return crop.astype(np.float32)
