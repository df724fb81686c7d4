"""Writes a run's history as JSON lines and TensorBoard event files."""

from collections.abc import Sequence
import json
import logging
import os
import pathlib
import socket
import time

import numpy as np
from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2

from alexnet_jax import files
from alexnet_jax.config import is_number
from alexnet_jax.training import metrics
from alexnet_jax.training.loggers import Logger

METRICS_FILE = 'metrics.jsonl'
STEP_LOSSES = 'train/step_losses'  # in a row: list of the losses of its steps
_LAST = 'last'  # marks a row that is dropped when the run goes on
_MOST_SCALARS = 100  # classes whose measures are scalars in the event files
_PIXELS = 500  # most of a side of the picture of a confusion matrix


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
    and all(map(is_number, (*losses, *others)))
  )


class MetricWriter:
  """Writes scalars to both files, histograms to the event files.

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
    self, step: int, losses: Sequence[float], *, last: bool = False
  ) -> None:
    """Writes a row with the loss of each of the steps up to `step`, in nats.

    The `last` one, after the last log point of a run, is dropped when the run
    goes on: a longer run writes these steps at its next log point.
    """
    if not losses:
      return
    mark = {_LAST: True} if last else {}
    self._row({'step': step, STEP_LOSSES: list(losses), **mark})
    for number, loss in enumerate(losses, step - len(losses) + 1):
      self._event(step=number, summary=summary.scalar('train/step_loss', loss))

  def classes(self, step: int, confusion, class_names: Sequence[str]) -> None:
    """Writes the measures of every class, of a sparse confusion matrix.

    Up to 100 classes have scalars such as `precision/NUMBER_NAME`, more have
    histograms. The picture of the matrix has rows (true classes) divided by
    their sums; of more than 500 classes a pixel is the mean of several.
    """
    measures = metrics.class_measures(confusion)
    for measure, values in measures.items():
      if len(class_names) <= _MOST_SCALARS:
        # Numbered: names may differ in characters that tags do not have.
        for i, value in enumerate(values):
          tag = f'{measure}/{i:02d} {class_names[i]}'
          self._event(step=step, summary=summary.scalar(tag, value))
      else:
        counts, edges = np.histogram(values, bins=64)
        self.histogram(step, f'eval/{measure}', counts, edges)
    picture = _picture(confusion)
    image = summary.image('eval/confusion_picture', picture, dataformats='HW')
    self._event(step=step, summary=image)

  def histogram(
    self, step: int, name: str, counts: np.ndarray, edges: np.ndarray
  ) -> None:
    """Writes a histogram: counts [bins] between edges [bins + 1]."""
    centers = (edges[:-1] + edges[1:]) / 2
    histogram = summary.histogram_raw(
      name,
      min=float(edges[0]),
      max=float(edges[-1]),
      num=int(counts.sum()),
      sum=float((counts * centers).sum()),
      sum_squares=float((counts * centers**2).sum()),
      bucket_limits=edges[1:].tolist(),
      bucket_counts=counts.tolist(),
    )
    self._event(step=step, summary=histogram)

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


def _picture(confusion):  # the row shares as gray levels, white is 0
  merged = -(-confusion.shape[0] // _PIXELS)
  pairs, size = confusion.tocoo(), -(-confusion.shape[0] // merged)
  shares = np.zeros((size, size))
  support = confusion.sum(axis=1)[pairs.row]
  places = pairs.row // merged, pairs.col // merged
  np.add.at(shares, places, pairs.data / support / merged)
  picture = np.uint8(255 - np.round(255 * shares))
  scale = max(1, _PIXELS // size)
  return picture.repeat(scale, 0).repeat(scale, 1)
