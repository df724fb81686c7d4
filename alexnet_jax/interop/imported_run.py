"""Makes a run of a trained network, and a trained network of a run."""

import collections
import json
import pathlib

import jax
import ml_collections
import numpy as np

from alexnet_jax import config as config_lib, files, validation
from alexnet_jax.data import pixel_statistics
from alexnet_jax.errors import UserError
from alexnet_jax.interop import claims
from alexnet_jax.interop.networks import TrainedNetwork
from alexnet_jax.training import (
  build,
  checkpoint,
  schedule,
  state as state_lib,
  transfer,
)
from alexnet_jax.training.progress import DataRecord, Progress, SavedRun


def read(
  workdir: str | pathlib.Path, which: str
) -> tuple[checkpoint.OpenRun, TrainedNetwork]:
  """Returns a checkpoint, see `checkpoint.open_run`, and its network.

  The weights are the averaged ones if the run has them.
  """
  run = checkpoint.open_run(workdir, which)
  network = TrainedNetwork(
    run.config.model.to_dict(),
    run.config.data.to_dict(),
    build.stored_mean(run.config, workdir),
    run.state.eval_params,
    run.state.batch_stats,
    len(run.class_names),
    tuple(run.class_names),
    claims.of_run(run),
  )
  return run, network


def make_config(
  network: TrainedNetwork, source: str = 'folder', path: str = ''
) -> ml_collections.ConfigDict:
  """Returns a config that computes what the network does, else of defaults.

  `source` and `path` are those of the data that it is to be measured on, if it
  is known. Raises UserError if a value is one that the config does not take.
  """
  config = config_lib.make_config()
  try:
    config.model.update(network.model)
    config.data.update(network.data)
  except Exception as error:  # values of odd types raise anything
    raise UserError(f'the file does not fit the config: {error}') from None
  config.data.source = source
  config.data.path = files.absolute_path(path)
  if not path and source not in ('digits', 'tfds', 'synthetic'):
    config.data.path = transfer.NO_DATA
  validation.validate(config)
  return config


def write(
  config: ml_collections.ConfigDict,
  network: TrainedNetwork,
  workdir: str | pathlib.Path,
  origin: dict,
) -> str:
  """Writes a run with checkpoint 0, as a whole or not at all.

  The `origin` of the weights, JSON, is kept in the checkpoint. Returns the
  `state.state_digest`; raises UserError unless each output has its own name.
  """
  names, outputs = network.class_names, network.num_classes
  if len(names) != outputs or len({*names} - {''}) != outputs:
    times = collections.Counter(names)
    odd = [name for name in times if not name or times[name] > 1]
    raise UserError(
      f'the network has {outputs} outputs, and there are {len(names)} names of'
      f' classes{f" ({odd[0]!r} is empty or twice)" if odd else ""}; each takes'
      ' a name of its own (--class_names FILE, one a line)'
    )
  model = build.make_model(config, network.num_classes)
  state = jax.device_get(build.make_state(config, model)).replace(
    params=network.params, batch_stats=network.batch_stats
  )
  tree = state_lib.saved_tree(state)
  run = SavedRun(
    config=config,
    # No data has trained it: none of the fields that a resumed run checks.
    data=DataRecord(list(names)),
    progress=Progress(schedule.PlateauState(config.optimizer.learning_rate)),
    iterator={'next_index': 0},
    imported=origin,
  )
  with files.new_folder(workdir) as folder:
    config_lib.write_config(config, folder)
    if config.data.mean != 'none':  # as `pixel_statistics` reads it
      mean = network.mean.astype(np.float64)
      mean = mean[None, None] if mean.ndim == 1 else mean
      path = folder / pixel_statistics.MEAN_FILE
      np.savez(path, mean=mean, of=json.dumps('imported'))
    with checkpoint.Checkpoints(folder) as checkpoints:
      checkpoints.save(tree, run)
      checkpoints.wait()
  return state_lib.state_digest(tree)
