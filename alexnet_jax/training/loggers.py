"""Loggers beside the run's own files: Weights & Biases, MLflow.

A run that goes on is the same run there, by the identity in its folder. It
tells them the whole history again, and each takes what it lacks.
"""

import importlib.util
import logging
import pathlib
import queue
import threading

from alexnet_jax import config as config_lib, errors, files

_PATIENCE = 20  # seconds


class _Wandb:
  """W&B refuses steps below its last: they are a column, and it counts rows.

  Offline it knows of none: the newest of its folders has all.
  """

  def __init__(self, identity, name, config):
    import wandb

    options = {'resume': 'allow', 'reinit': 'create_new', 'config': config}
    options['settings'] = wandb.Settings(console='off')
    self._run = wandb.init(id=identity, name=name, **options)
    self.identity, self._known = self._run.id, self._run.starting_step
    self._run.define_metric('*', step_metric='step')
    self.close = self._run.finish

  def scalars(self, step, values):
    self._known -= 1
    if self._known < 0:
      self._run.log({'step': step, **values})


class _Mlflow:
  """MLflow takes any step again: it gets those after its last of each key."""

  def __init__(self, identity, name, config):
    import mlflow

    self._mlflow, self._last = mlflow, {}
    self.identity = mlflow.start_run(identity, run_name=name).info.run_id
    self.close = mlflow.end_run
    if identity is None:
      mlflow.log_params(config)

  def scalars(self, step, values):
    client = self._mlflow.MlflowClient()
    for key in values.keys() - self._last.keys():
      there = client.get_metric_history(self.identity, key)
      self._last[key] = max((metric.step for metric in there), default=-1)
    new = {key: v for key, v in values.items() if step > self._last[key]}
    self._mlflow.log_metrics(new, step=step)


_CLASSES = {'wandb': _Wandb, 'mlflow': _Mlflow}


class Logger:
  """A thread that tells one of them; the first failure is warned of, and ends.

  One of a pool would be waited for at the end of the process.
  """

  def __init__(self, name: str, config, workdir: pathlib.Path, step: int):
    """`step`: the first of this process; a run from 0 is a new one there."""
    self._name, self._queue = name, queue.SimpleQueue()
    path = workdir.absolute() / 'loggers' / name
    start = path, config_lib.flatten(config), step == 0
    self._thread = threading.Thread(target=self._tell, args=start, daemon=True)
    self._thread.start()

  def _tell(self, path, config, is_new):
    try:
      path.parent.mkdir(exist_ok=True)
      has_id = path.exists() and not is_new
      identity = path.read_text() if has_id else None
      logger = _CLASSES[path.name](identity, path.parts[-3], config)
      with files.replaced_file(path) as temporary:
        temporary.write_text(logger.identity)
      while (row := self._queue.get()) is not None:
        logger.scalars(*row)
      logger.close()
    except Exception as error:
      text = '%s is told nothing more, and the run goes on: %s'
      logging.getLogger(__name__).warning(text, self._name, error)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Tells a row; waits for nothing."""
    self._queue.put((step, values))

  def close(self) -> None:
    """Waits until all was told, but not for long: a run may have to end."""
    self._queue.put(None)
    self._thread.join(_PATIENCE)
    if self._thread.is_alive():
      text = '%s was not told all in %d s; the same command tells it the rest'
      logging.getLogger(__name__).warning(text, self._name, _PATIENCE)


def check_installed(names: str) -> None:
  """Raises UserError if a package of config.loggers is missing."""
  for name in filter(None, names.split(',')):
    spec = importlib.util.find_spec(name)
    if not (spec and spec.origin):  # a folder of that name is none
      raise errors.UserError(
        f'config.loggers is {names!r}, but {name} is not installed:'
        f' {errors.how_to_install(name)}'
      )
