"""bench data: images per second of the data pipeline beside others."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import random
import shlex
import sys
import tempfile

from alexnet_jax.bench import report
from alexnet_jax.bench import workers
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Images per second from the same photographs kept in several layouts: shuffled
uint8 batches [256, 224, 224, 3], randomly cropped and mirrored, in the memory
of the process that asks for them. Beside this package's loader: others (those
that are installed), and the bare parts of the work as plain Python does them in
threads. Everything is measured in turn in every round; ratios are taken within
a round, and their median is reported."""

PEERS = ('tf.data', 'torch', 'grain', 'spdl')
_OURS = ('ours', 'ours, mirrored on the host')
_RAW_FACTOR = 8  # raw squares go by that much faster
_ENOUGH_BATCHES = 12
_NOTES = (
  "'ours' leaves the mirroring to the device, which costs it nothing;"
  " 'ours, mirrored on the host' does all that the peers do.",
  'Those that decode in Python use simplejpeg, as ours does, unless their name'
  ' says otherwise; tf.data has a decoder of its own.',
  'Where JPEGs are resized, the peers interpolate, which is cheaper than the'
  ' mean over areas that ours takes.',
  'Limits do one part of the work only, without order, batches or hand-over.',
)


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  text = 'the data pipeline beside others and beside its limits'
  parser = report.add_command(commands, 'data', text, _DESCRIPTION)
  add = parser.add_argument
  text = 'photographs, a subfolder per class (default: synthetic ones)'
  add('--path', default='', metavar='DIR', help=text)
  text = 'keeps the layouts for the next time (default: a temporary folder)'
  add('--cache', default='', metavar='DIR', help=text)
  text = (
    'folder-320, folder-320-to-256, folder-256, tfds-320, tfds-256, raw-256'
  )
  add('--layouts', type=report.names, default=(), metavar='A,B', help=text)
  text = f'{",".join(PEERS)}, or none (default: those that are installed)'
  add('--peers', type=report.names, default=PEERS, metavar='A,B', help=text)
  for flag, default, text in (
    ('images', 3000, 'in every layout'),
    ('rounds', 5, 'in which everything is measured in turn'),
    ('batches', 24, f'in a measurement; {_RAW_FACTOR} times as many if raw'),
    ('batch_size', 256, 'images in a batch'),
  ):
    text += ' (default: %(default)s)'
    add(f'--{flag}', type=report.positive, default=default, help=text)
  text = 'or processes of every candidate (default: one per core)'
  add('--threads', type=report.positive, default=0, help=text)
  parser.set_defaults(work=_work)


def _work(arguments, unknown):
  if unknown:
    raise UserError(f'unknown arguments: {shlex.join(unknown)}')
  if importlib.util.find_spec('cv2') is None:
    raise UserError(f'this needs OpenCV: {how_to_install("bench")}')
  from alexnet_jax.bench import layouts as layouts_lib
  from alexnet_jax.data.loader import num_cores

  report.check_names('--layouts', arguments.layouts, list(layouts_lib.LAYOUTS))
  peers = () if arguments.peers == ('none',) else arguments.peers
  report.check_names('--peers', peers, PEERS)
  names = arguments.layouts or layouts_lib.LAYOUTS
  layouts = [layouts_lib.LAYOUTS[name] for name in names]
  threads = arguments.threads or num_cores()
  with contextlib.ExitStack() as stack:
    cache = arguments.cache or stack.enter_context(
      tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_')
    )
    made = layouts_lib.prepare(
      arguments.path, pathlib.Path(cache), arguments.images, layouts, threads
    )
    tasks = [
      layouts_lib.Task(layout, cache, arguments.batch_size, threads)
      for layout in layouts
    ]
    rows, skipped = measure(tasks, peers, arguments.rounds, arguments.batches)
  result = {
    **report.header(),
    'photographs': made,
    'batch_size': arguments.batch_size,
    'num_batches': arguments.batches,
    'threads': threads,
    'rows': rows,
    'ratios': {layout.name: ratios(rows, layout.name) for layout in layouts},
    'skipped': skipped,
  }
  _show(result)
  return result


@dataclasses.dataclass
class _Entry:
  """A candidate on a layout, and its images per second in each round."""

  worker: workers.Worker
  task: 'layouts.Task'  # noqa: F821
  candidate: str
  kind: str
  throughput: list[float] = dataclasses.field(default_factory=list)

  def ask(self, method, **arguments):
    """Asks the worker; an error names candidate and layout."""
    layout = self.task.layout.name
    try:
      return self.worker.ask(
        method, candidate=self.candidate, task=self.task, **arguments
      )
    except workers.UnsupportedError:
      raise
    except workers.WorkerError as error:
      message = f'{self.candidate} on {layout}: {error}'
      raise workers.WorkerError(message) from error


def measure(tasks, peers, rounds: int, num_batches: int) -> tuple[list, list]:
  """Measures all candidates in turn in every round.

  Args:
    tasks: a `layouts.Task` for each layout.
    peers: libraries, some of PEERS.
    rounds: measurements of each candidate on each layout.
    num_batches: batches in one measurement, eight times as many if raw.

  Returns:
    (rows {layout, candidate, kind: ours, peer or limit, images_per_second: of
    each round, median, min, max}; what was not measured {layout or '',
    candidate, reason}).

  Raises:
    WorkerError: if a candidate fails, or makes other batches than it has to.
  """
  # TensorFlow is to take no GPU, and to say less.
  hidden = {'CUDA_VISIBLE_DEVICES': '-1', 'TF_CPP_MIN_LOG_LEVEL': '3'}
  environment = {**os.environ, **hidden}
  with contextlib.ExitStack() as stack:
    candidates, skipped = [], []
    for library in ('ours', *peers, 'limits'):
      print(f'starting {library}', file=sys.stderr)
      worker = stack.enter_context(
        workers.Worker(
          'alexnet_jax.bench.data_peers', library, environment=environment
        )
      )
      kind = {'ours': 'ours', 'limits': 'limit'}.get(library, 'peer')
      try:
        names = worker.ask('candidates')
      except workers.UnsupportedError as error:
        reason = f'not installed ({error})'
        skipped.append({'layout': '', 'candidate': library, 'reason': reason})
        continue
      candidates += [(worker, name, kind) for name in names]
    entries = []
    for task in tasks:
      print(f'checking {task.layout.name}', file=sys.stderr)
      for worker, name, kind in candidates:
        entry = _Entry(worker, task, name, kind)
        try:
          entry.ask('check')
        except workers.UnsupportedError as error:
          if kind != 'limit':
            where = {'layout': task.layout.name, 'candidate': name}
            skipped.append({**where, 'reason': str(error)})
        else:
          entries.append(entry)
    for number in range(rounds):
      _round(entries, number, num_batches)
  return [_row(entry) for entry in entries], skipped


def _round(entries, number, num_batches):
  """Measures everything once, in an order that differs from round to round."""
  order = list(entries)
  random.Random(number).shuffle(order)
  # A machine that drifts must not do so between two that are compared.
  order.sort(key=lambda entry: entry.task.layout.name)
  print(f'round {number + 1}', file=sys.stderr)
  for entry in order:
    factor = _RAW_FACTOR if entry.task.layout.kind == 'raw' else 1
    speed = entry.ask('measure', num_batches=factor * num_batches)
    entry.throughput.append(speed)


def _row(entry):
  return {
    'layout': entry.task.layout.name,
    'candidate': entry.candidate,
    'kind': entry.kind,
    'images_per_second': entry.throughput,
    **report.spread(entry.throughput),
  }


def ratios(rows: list[dict], layout: str) -> dict:
  """Compares this package's loader with the others on one layout.

  Returns:
    {best_peer, best_limit: the names of those with the highest medians; 'ours'
    and 'ours, mirrored on the host': {candidate: the median over the rounds of
    the ratio of the two in the same round}}.
  """
  rows = [row for row in rows if row['layout'] == layout]
  peers = [row for row in rows if row['kind'] == 'peer']
  limits = [row for row in rows if row['kind'] == 'limit']
  result = {'best_peer': _fastest(peers), 'best_limit': _fastest(limits)}
  throughput = {row['candidate']: row['images_per_second'] for row in rows}
  for own in _OURS:
    result[own] = {
      name: report.median_ratio(throughput[own], others)
      for name, others in throughput.items()
      if name != own
    }
  return result


def _fastest(rows):
  best = max(rows, key=lambda row: row['median'], default=None)
  return best and best['candidate']


def _show(result):
  """Prints a table for each layout, and notes."""
  made = result['photographs']
  sizes = ', '.join(
    f'{size}: {count / 1000:.0f} kB'
    for size, count in made['bytes_per_jpeg'].items()
  )
  report.show(
    report.header_lines(result),
    f'{result["threads"]} threads; {made["images"]} images'
    f' ({made["distinct"]} distinct; JPEG {sizes}) of {made["source"]}',
  )
  for layout, compared in result['ratios'].items():
    rows = [row for row in result['rows'] if row['layout'] == layout]
    rows.sort(key=lambda row: (row['kind'] == 'limit', -row['median']))
    columns = ('images/s', 'median', 'min', 'max', 'ours / it', 'mirrored / it')
    lines = [
      (
        row['candidate'],
        *(f'{row[key]:,.0f}' for key in ('median', 'min', 'max')),
        *(f'{compared[own].get(row["candidate"], 1.0):.2f}' for own in _OURS),
      )
      for row in rows
    ]
    report.show(report.table(layout, columns, lines))
  report.show(*_NOTES)
  if result['num_batches'] < _ENOUGH_BATCHES:
    report.show(
      f'{result["num_batches"]} batches in a measurement are too few beside'
      f' those made ahead: take {_ENOUGH_BATCHES} at least (--batches)'
    )
  for entry in result['skipped']:
    place = f' on {entry["layout"]}' if entry['layout'] else ''
    report.show(f'not measured: {entry["candidate"]}{place}: {entry["reason"]}')
