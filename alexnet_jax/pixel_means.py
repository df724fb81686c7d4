"""What a run knows of the pixels of its data: computed once, and kept."""

import dataclasses
import json
import pathlib
import zipfile

import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.data import averages
from alexnet_jax.data import colors
from alexnet_jax.data import images
from alexnet_jax.errors import UserError

MEAN_FILE = 'pixel_mean.npz'


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of the training split, as the config wants them.

  Attributes:
    mean: what is subtracted, float32 [3] or [crop, crop, 3].
    color: float32 [3, 3], see `colors.shift_matrix`; None without
      config.data.pca_lighting.
  """

  mean: np.ndarray
  color: np.ndarray | None


def statistics(
  config, loader, workdir, progress=lambda done: None, limit=None
) -> Statistics:
  """The mean of the pixels and how their colors vary.

  They are computed in one pass over the training split, once, and kept in
  `workdir/pixel_mean.npz`. Of the mean image every crop loses the center crop,
  wherever the crop itself was taken; with config.init.mean_image it is that of
  the run whose weights this one starts with.

  Args:
    config: the config.
    loader: of the training split.
    workdir: the run's folder.
    progress: see `averages.pixel_statistics`.
    limit: uses that many examples only, and keeps nothing; None: all.

  Raises:
    UserError: if the other run subtracts no mean image of the size of crops
      here.
  """
  if not _needed(config):
    return nothing(config)
  path = pathlib.Path(workdir) / MEAN_FILE
  wanted = [loader.source.fingerprint, loader.resize_size, config.data.mean]
  if config.init.mean_image:
    wanted.append(config.init.workdir)
  wanted = json.dumps(wanted)
  stored = _load(path) if path.exists() else None
  if _usable(config, stored) and str(stored['of']) == wanted:
    return _wanted(config, stored)
  found = {}
  if config.init.mean_image:
    found['mean'] = _mean_image_of(config.init.workdir, config.data.crop_size)
  if config.data.pca_lighting or not found:
    own = _known(config, loader)
    if own is None:
      mean, covariance = averages.pixel_statistics(
        loader, progress=progress, limit=limit
      )
      own = {'mean': mean, 'covariance': covariance}
    found = {**own, **found}
  if limit is None:
    temporary = path.with_suffix('.tmp.npz')
    np.savez(temporary, **found, of=wanted)
    temporary.replace(path)
  return _wanted(config, found)


def nothing(config) -> Statistics:
  """Zeros with the shapes of what `statistics` gives."""
  mean = np.zeros(shape(config), np.float32)
  if config.data.mean_rgb:
    mean = _wanted_mean(config, {})
  return Statistics(
    mean,
    np.zeros((3, 3), np.float32) if config.data.pca_lighting else None,
  )


def shape(config) -> tuple[int, ...]:
  """Of the mean."""
  if config.data.mean == 'image':
    return (config.data.crop_size, config.data.crop_size, 3)
  return (3,)


def stored_mean(config, workdir) -> np.ndarray:
  """What a run that was trained already subtracts; see `Statistics`.

  Raises:
    UserError: if the run's folder lacks it.
  """
  if config.data.mean == 'none' or config.data.mean_rgb:
    return _wanted_mean(config, {})
  what = 'the mean that the run subtracts from images'
  return _wanted_mean(config, _stored(workdir, 'mean', what))


def stored_color(config, workdir) -> np.ndarray | None:
  """How a run shifts colors; see `Statistics`.

  Raises:
    UserError: if the run's folder lacks it.
  """
  if not config.data.pca_lighting:
    return None
  what = 'the covariance of the colors that the run shifts'
  return _wanted_color(config, _stored(workdir, 'covariance', what))


def _stored(workdir, name, what):
  path = pathlib.Path(workdir) / MEAN_FILE
  stored = _load(path) if path.is_file() else None
  if name not in (stored or {}):
    raise UserError(
      f"{path} with {what} is missing or damaged; start that run's training"
      ' command again to make it anew'
    )
  return stored


def pca_lighting(
  config, matrix: np.ndarray | None, num_examples: int
) -> colors.Shift | None:
  """What the config does to the colors of training images.

  Args:
    config: of the run.
    matrix: `Statistics.color`.
    num_examples: of the training split.
  """
  if not config.data.pca_lighting:
    return None
  if matrix is None:
    raise ValueError('config.data.pca_lighting needs the colors of the data')
  steps = config_lib.resolve_durations(config, num_examples).pca_lighting_steps
  shrink = config.data.pca_lighting if config.data.pca_lighting_shrink else 0.0
  return colors.Shift(matrix, steps, 1 / (1 + shrink))


def _needed(config):
  computed = config.data.mean != 'none' and not config.data.mean_rgb
  return computed or config.data.pca_lighting


def _mean_image_of(workdir, crop_size):
  """float32 [crop_size, crop_size, 3], what another run subtracts."""
  there = config_lib.read_config(workdir)
  if there.data.mean != 'image':
    problem = f'its config.data.mean is {there.data.mean!r}, not image'
  elif there.data.crop_size != crop_size:
    problem = (
      f'its config.data.crop_size is {there.data.crop_size}, but {crop_size}'
      ' here'
    )
  else:
    return stored_mean(there, workdir)
  raise UserError(
    f'config.init.mean_image: {workdir} has no mean image for this network:'
    f' {problem}; with --config.init.mean_image=false that of the data here is'
    ' subtracted'
  )


def _known(config, loader):
  """What a raw set carries, {mean: float64 [1, 1, 3], covariance}, or None.

  It is that of the squares that training sees: no pass over them is needed.
  Where training sees a part of them (cross-validation) there is none.
  """
  source = loader.source
  mean = getattr(source, 'rgb_mean', None)
  fits = getattr(source, 'square_size', None) == loader.resize_size
  needs_image = config.data.mean == 'image' and not config.init.mean_image
  if not needs_image and fits and mean is not None:
    return {
      'mean': mean.reshape(1, 1, 3),
      'covariance': source.rgb_covariance,
    }
  return None


def _load(path):
  """{mean, of, covariance} of a file; None if it is damaged.

  The covariance may be missing: not every mean comes with one.
  """
  try:
    with np.load(path) as stored:
      names = ('mean', 'of', *({'covariance'} & set(stored.files)))
      return {name: stored[name] for name in names}
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
    return None


def _usable(config, stored):
  return stored is not None and (
    'covariance' in stored or not config.data.pca_lighting
  )


def _wanted(config, found):
  return Statistics(_wanted_mean(config, found), _wanted_color(config, found))


def _wanted_mean(config, found):
  if config.data.mean == 'none':
    mean = np.zeros(shape(config))
  elif config.data.mean_rgb:
    mean = np.array(config.data.mean_rgb)
  elif config.data.mean == 'channel':
    mean = found['mean'].mean((0, 1))
  else:
    mean = images.center_crop(found['mean'], config.data.crop_size)
  return mean.astype(np.float32)


def _wanted_color(config, found):
  if not config.data.pca_lighting:
    return None
  return colors.shift_matrix(
    found['covariance'], config.data.pca_lighting, config.data.pca_lighting_unit
  ).astype(np.float32)
