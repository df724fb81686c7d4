"""Makes the folder of a run of weights that were trained elsewhere."""

from collections.abc import Sequence
import json
import pathlib
import shutil
import tempfile

import jax
import ml_collections
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax import validation
from alexnet_jax.data import pixel_statistics
from alexnet_jax.errors import UserError
from alexnet_jax.interop.imported import Imported
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import schedule
from alexnet_jax.training import state as state_lib
from alexnet_jax.training import transfer
from alexnet_jax.training.progress import Progress


def make_config(
  imported: Imported, source: str = 'folder', path: str = ''
) -> ml_collections.ConfigDict:
  """A config that computes what the imported network computes.

  What does not say how a network is used (optimizer, schedule, ...) is the
  default.

  Args:
    imported: the network.
    source: of the data that it is to be measured on, as config.data.source.
    path: where that lies; '': it is not known yet.

  Raises:
    UserError: if a value is one that the config does not take.
  """
  config = config_lib.make_config()
  try:
    config.model.update(imported.model)
    config.data.update(imported.data)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f'the file does not fit the config: {error}') from None
  config.data.source = source
  config.data.path = (
    str(pathlib.Path(path).expanduser().absolute()) if path else ''
  )
  if not path and source not in ('digits', 'tfds', 'synthetic'):
    config.data.path = transfer.NO_DATA
  validation.validate(config)
  return config


def check_workdir(workdir: str | pathlib.Path) -> None:
  """Raises UserError unless the folder is empty, or not there yet."""
  path = pathlib.Path(workdir)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(
      f'{workdir} is there already, and no empty folder; name a new one, for'
      ' nothing in it is replaced'
    )


def write(
  config: ml_collections.ConfigDict,
  imported: Imported,
  class_names: Sequence[str],
  workdir: str | pathlib.Path,
  origin: dict | None = None,
) -> str:
  """Writes config.json, checkpoint 0 and the mean of the pixels.

  The folder is there as a whole or not at all.

  Args:
    config: see `make_config`.
    imported: the network.
    class_names: of its classes.
    workdir: the run's folder.
    origin: of the weights, kept in the checkpoint; JSON.

  Returns:
    The digest of the state, see `state.state_digest`.

  Raises:
    UserError: if the weights are not those of the config's network, there are
      other than its number of names, or the folder is not empty.
  """
  check_workdir(workdir)
  if len({*class_names}) != imported.num_classes:
    raise UserError(
      f'expected different names of {imported.num_classes} classes, found'
      f' {len(class_names)}, {len({*class_names})} of them different'
    )
  tree = state_lib.saved_tree(_state(config, imported))
  path = pathlib.Path(workdir).absolute()
  path.parent.mkdir(parents=True, exist_ok=True)
  place = pathlib.Path(tempfile.mkdtemp('.tmp', f'{path.name}.', path.parent))
  try:
    folder = place / path.name
    folder.mkdir()
    config_lib.write_config(config, folder)
    _write_mean(config, imported.mean, folder)
    _write_checkpoint(config, tree, class_names, origin, folder)
    folder.rename(path)
  finally:
    shutil.rmtree(place, ignore_errors=True)
  return state_lib.state_digest(tree)


def _write_mean(config, mean, folder):
  """As `pixel_statistics` reads it."""
  if config.data.mean == 'none':
    return
  if config.data.mean != 'image':
    mean = mean.reshape(1, 1, 3)
  np.savez(
    folder / pixel_statistics.MEAN_FILE,
    mean=mean.astype(np.float64),
    of=json.dumps('imported'),
  )


def _write_checkpoint(config, tree, class_names, origin, folder):
  rate = build.learning_rate(config)
  checkpoints = checkpoint.Checkpoints(folder)
  try:
    checkpoints.save(
      tree,
      checkpoint.SavedRun(
        config=config,
        # No data has trained it: none of the fields that a resumed run checks.
        data={'class_names': list(class_names)},
        progress=Progress(schedule.PlateauState(rate)),
        iterator={'next_index': 0},
        imported=origin or {},
      ),
    )
    checkpoints.wait()
  finally:
    checkpoints.close()


def _state(config, imported):
  """A fresh state with the imported weights."""
  model = build.make_model(config, imported.num_classes)
  state = build.make_state(config, model)
  parts = {'params': imported.params, 'batch_stats': imported.batch_stats}
  misfits = []
  for part, tree in parts.items():
    found = state_lib.leaf_names(tree)
    wanted = state_lib.leaf_names(getattr(state, part))
    misfits += [
      f'  {name}: expected {np.shape(wanted.get(name, ()))}, found'
      f' {np.shape(found.get(name, ()))}'
      for name in sorted(wanted.keys() | found.keys())
      if name not in wanted
      or name not in found
      or wanted[name].shape != found[name].shape
    ]
  if misfits:
    raise UserError(
      'the weights are not those of the network:\n' + '\n'.join(misfits)
    )
  return jax.device_get(state).replace(**jax.tree.map(np.asarray, parts))
