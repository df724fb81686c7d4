"""Writes a run's history as JSON lines, TensorBoard event files and to loggers.

Loggers are Weights & Biases and MLflow. A run that goes on is the same run
there, by the identity in its folder. It tells them the whole history again, and
each takes what it lacks.
"""

from collections.abc import Sequence
import importlib.util
import json
import logging
import os
import pathlib
import queue
import socket
import threading
import time

from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2

from alexnet_jax import config as config_lib, errors, files

METRICS_FILE = 'metrics.jsonl'
STEP_LOSSES = 'train/step_losses'  # in a row: list of the losses of its steps
_PATIENCE = 20  # seconds, with loggers at the end of a run
_LAST = 'last'  # marks a row that is dropped when the run goes on


def read_rows(
  workdir: str | pathlib.Path, name: str = METRICS_FILE
) -> list[dict]:
  """Reads the rows of a run's history; warns of lines that are none."""
  path, rows = pathlib.Path(workdir) / name, []
  files.refuse_special_file(path)
  lines = path.read_bytes().splitlines() if path.exists() else []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if _is_row(row):
      rows.append(row)
    else:
      logging.getLogger(__name__).warning(
        f'{path}: line {number} is no row of a history, and left out'
      )
  return rows


def _is_row(row):
  """Returns True for what `MetricWriter` writes."""
  if not isinstance(row, dict):
    return False
  step, losses = row.get('step'), row.get(STEP_LOSSES, [])
  others = [row[key] for key in row.keys() - {STEP_LOSSES, _LAST}]
  return (
    isinstance(step, int)
    and isinstance(losses, list)
    and 0 <= step < 2**32
    and len(losses) <= step
    and all(map(config_lib.is_number, (*losses, *others)))
  )


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


_LOGGERS = {'wandb': _Wandb, 'mlflow': _Mlflow}


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
      logger = _LOGGERS[path.name](identity, path.parts[-3], config)
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


class MetricWriter:
  """Writes scalars to both files.

  A resumed run goes on from a checkpoint that may be older than the files'
  end. What comes after it will be written again, so it is cut off.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    step: int,
    evaluated_step: int,
    loggers: Sequence[Logger] = (),
  ):
    """Opens the files without rows after `step`, of evaluations after theirs.

    The loggers are told the scalars: those that are kept, then all others.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    kept = [
      row
      for row in read_rows(workdir)
      if row['step'] <= (evaluated_step if 'eval/loss' in row else step)
      and _LAST not in row
    ]
    with files.replaced_file(path) as temporary:
      temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    self._file, self._loggers = path.open('a'), loggers
    for row in kept:
      if STEP_LOSSES not in row:
        values = {key: row[key] for key in row if key != 'step'}
        for logger in loggers:
          logger.scalars(row['step'], values)
    folder = path.with_name('events')
    folder.mkdir(exist_ok=True)
    name = f'events.out.tfevents.{time.time_ns()}.{socket.gethostname()}'
    # tensorboardX' own SummaryWriter has a thread, which dies without a word
    # when the disk is full and leaves the run waiting for it.
    self._records = record_writer.RecordWriter(str(folder / name))
    self._event(file_version='brain.Event:2')
    # TensorBoard drops the events of older files from this step on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._event(step=step + 1, session_log=start)

  def _event(self, **fields):
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._records.write(event.SerializeToString())

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Writes one row at `step`."""
    self._row({'step': step, **values})
    for logger in self._loggers:
      logger.scalars(step, values)
    for name, value in values.items():
      self._event(step=step, summary=summary.scalar(name, value))

  def _row(self, row):
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()

  def step_losses(
    self, step: int, losses: Sequence[float], **others: float
  ) -> None:
    """Writes a row with the loss of each of the steps up to `step`, in nats."""
    self._row({'step': step, STEP_LOSSES: list(losses), **others})
    for number, loss in enumerate(losses, step - len(losses) + 1):
      self._event(step=number, summary=summary.scalar('train/step_loss', loss))

  def last_row(
    self, step: int, values: dict[str, float], losses: Sequence[float]
  ) -> None:
    """Writes means and losses of the steps after the last log point of a run.

    The row is dropped when the run goes on: a longer run writes these steps at
    its next log point. So loggers, which cannot take it back, do not get it.
    """
    self.step_losses(step, losses, **values, **{_LAST: True})
    for name, value in values.items():
      self._event(step=step, summary=summary.scalar(name, value))

  def sync(self) -> None:
    """Makes the rows so far survive a power cut, before a checkpoint counts."""
    os.fsync(self._file.fileno())
    self._records.flush()

  def close(self) -> None:
    """Closes the files and the loggers."""
    self._file.close()
    self._records.close()
    for logger in self._loggers:
      logger.close()


class NoWriter:
  """Writes nothing, where process 0 writes for all."""

  def __getattr__(self, name):
    return lambda *args, **options: None
