"""The run's history as JSON lines and TensorBoard event files."""

import json
import os
import pathlib
import socket
import time

import numpy as np
from tensorboardX import record_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2

METRICS_FILE = 'metrics.jsonl'
# Scalars that depend on the clock: all others repeat exactly when a run does.
TIMING_KEYS = ('images_per_second', 'data_wait_fraction')


def read_rows(workdir: str | pathlib.Path) -> list[dict]:
  """The rows of a run's JSON lines; an unfinished last line is left out."""
  path = pathlib.Path(workdir) / METRICS_FILE
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:  # the run was killed while it wrote
      break
  return rows


class MetricWriter:
  """Writes scalars to both files, histograms to the event files.

  A resumed run goes on from a checkpoint that may be older than the files'
  end. What comes after it will be written again, so it is cut off.
  """

  def __init__(
    self, workdir: str | pathlib.Path, *, step: int, evaluated_step: int
  ):
    """Opens the files.

    Args:
      workdir: the run's folder.
      step: rows after this step are dropped.
      evaluated_step: so are evaluations after this one.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    kept = [
      row
      for row in read_rows(workdir)
      if row['step'] <= (evaluated_step if _is_evaluation(row) else step)
    ]
    temporary = path.with_suffix('.tmp')
    temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    temporary.replace(path)
    self._file = path.open('a')
    self._events = EventFile(pathlib.Path(workdir) / 'events', step + 1)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """One row at `step`."""
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._events.add(step, summary.scalar(name, value))

  def histogram(
    self, step: int, name: str, counts: np.ndarray, edges: np.ndarray
  ) -> None:
    """A histogram of counts [bins] between edges [bins + 1] at `step`."""
    centres = (edges[:-1] + edges[1:]) / 2
    self._events.add(
      step,
      summary.histogram_raw(
        name,
        min=float(edges[0]),
        max=float(edges[-1]),
        num=int(counts.sum()),
        sum=float((counts * centres).sum()),
        sum_squares=float((counts * centres**2).sum()),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
      ),
    )

  def sync(self) -> None:
    """Makes the rows so far survive a power cut, before a checkpoint counts."""
    os.fsync(self._file.fileno())
    self._events.flush()

  def close(self) -> None:
    self._file.close()
    self._events.close()


class EventFile:
  """One TensorBoard event file, written by the caller's thread.

  tensorboardX' own SummaryWriter has a thread, which dies without a word when
  the disk is full and leaves the run waiting for it.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int):
    """Starts a file; TensorBoard drops older events from `purge_step` on."""
    folder.mkdir(exist_ok=True)
    name = f'events.out.tfevents.{time.time_ns()}.{socket.gethostname()}'
    self._records = record_writer.RecordWriter(str(folder / name))
    self._write(file_version='brain.Event:2')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step=purge_step, session_log=start)

  def add(self, step: int, values) -> None:
    """Writes a Summary proto at `step`."""
    self._write(step=step, summary=values)

  def _write(self, **fields):
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._records.write(event.SerializeToString())

  def flush(self) -> None:
    self._records.flush()

  def close(self) -> None:
    self._records.close()


def _is_evaluation(row):
  return any(key.startswith('eval/') for key in row)
