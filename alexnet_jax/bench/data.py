"""bench data: images per second of the data pipeline beside others."""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import os
import random
import shlex
import sys
import tempfile

from alexnet_jax import cli
from alexnet_jax.bench import report
from alexnet_jax.bench import workers
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Images per second from the same photographs kept in several layouts: shuffled
uint8 batches [256, 224, 224, 3], randomly cropped and mirrored. Beside this
package's loader: others (those that are installed), and the bare parts of the
work as plain Python does them in threads, all in turn in every round."""

PEERS = ('tf.data', 'torch', 'grain', 'spdl')
_OURS = ('ours', 'ours, mirrored on the host')
_RAW_FACTOR = 8  # raw squares go by that much faster
_ENOUGH_BATCHES = 12
_NOTES = (
  "'ours' leaves the mirroring to the device; 'ours, mirrored on the host' does"
  ' all that the peers do. Those that decode in Python use simplejpeg, as ours'
  ' does, unless their name says otherwise. Where JPEGs are resized, they'
  ' interpolate, which is cheaper than the mean over areas that ours takes.'
  ' Limits do one part of the work, without order, batches or hand-over.'
)


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  text = 'the data pipeline beside others and beside its limits'
  parser = report.add_command(commands, 'data', text, _DESCRIPTION)
  add = parser.add_argument
  text = 'photographs, a subfolder per class (default: synthetic ones)'
  add('--path', type=cli.path, default='', metavar='DIR', help=text)
  text = 'keeps the layouts for the next time (default: a temporary folder)'
  add('--cache', type=cli.path, default='', metavar='DIR', help=text)
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
  from alexnet_jax.bench import layouts
  from alexnet_jax.data.loader import num_cores

  report.check_names('--layouts', arguments.layouts, layouts.LAYOUTS)
  peers = () if arguments.peers == ('none',) else arguments.peers
  report.check_names('--peers', peers, PEERS)
  names = arguments.layouts or layouts.LAYOUTS
  threads = arguments.threads or num_cores()
  with contextlib.ExitStack() as stack:
    cache = arguments.cache or stack.enter_context(
      tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_')
    )
    size = arguments.batch_size
    tasks = [
      dataclasses.replace(
        layouts.LAYOUTS[name], cache=cache, batch_size=size, threads=threads
      )
      for name in names
    ]
    made = layouts.prepare(arguments.path, arguments.images, tasks)
    rows, skipped = measure(tasks, peers, arguments.rounds, arguments.batches)
  result = {
    **report.header(),
    'photographs': made,
    'batch_size': arguments.batch_size,
    'num_batches': arguments.batches,
    'threads': threads,
    'rows': rows,
    'ratios': {task.name: ratios(rows, task.name) for task in tasks},
    'skipped': skipped,
  }
  _show(result)
  return result


def measure(tasks, peers, rounds: int, num_batches: int) -> tuple[list, list]:
  """Measures all candidates in turn in every round.

  Args:
    tasks: one for each layout.
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
  start = functools.partial(
    workers.Worker,
    'alexnet_jax.bench.data_peers',
    environment={**os.environ, **hidden},
  )
  entries, skipped = [], []  # of entries: (row, worker, task)
  with contextlib.ExitStack() as stack:
    for library in ('ours', *peers, 'limits'):
      print(f'starting {library}', file=sys.stderr)
      worker = stack.enter_context(start(library))
      kind = {'ours': 'ours', 'limits': 'limit'}.get(library, 'peer')
      try:
        names = worker.ask('candidates')
      except workers.UnsupportedError as error:
        reason = f'not installed ({error})'
        skipped.append({'layout': '', 'candidate': library, 'reason': reason})
        continue
      for task, name in itertools.product(tasks, names):
        row = {'layout': task.name, 'candidate': name}
        try:
          _ask(worker, 'check', candidate=name, task=task)
        except workers.UnsupportedError as error:
          skipped += [{**row, 'reason': str(error)}] * (kind != 'limit')
        else:
          row |= {'kind': kind, 'images_per_second': []}
          entries.append((row, worker, task))
    for number in range(rounds):
      print(f'round {number + 1}', file=sys.stderr)
      order = random.Random(number).sample(entries, len(entries))
      # A machine that drifts must not do so between two that are compared.
      for row, worker, task in sorted(order, key=lambda e: e[0]['layout']):
        times = _RAW_FACTOR if task.kind == 'raw' else 1
        which = {'candidate': row['candidate'], 'task': task}
        speed = _ask(
          worker, 'measure', num_batches=times * num_batches, **which
        )
        row['images_per_second'].append(speed)
  rows = [row | report.spread(row['images_per_second']) for row, *_ in entries]
  rows.sort(key=lambda row: [t.name for t in tasks].index(row['layout']))
  return rows, skipped


def _ask(worker, method, **arguments):
  """Asks a worker; an error names candidate and layout."""
  try:
    return worker.ask(method, **arguments)
  except workers.UnsupportedError:
    raise
  except workers.WorkerError as error:
    layout = arguments['task'].name
    message = f'{arguments["candidate"]} on {layout}: {error}'
    raise workers.WorkerError(message) from error


def ratios(rows: list[dict], layout: str) -> dict:
  """Compares this package's loader with the others on one layout.

  Returns:
    {best_peer, best_limit: the names of those with the highest medians; 'ours'
    and 'ours, mirrored on the host': {candidate: the median over the rounds of
    the ratio of the two in the same round}}.
  """
  rows = [row for row in rows if row['layout'] == layout]
  speeds = {row['candidate']: row['images_per_second'] for row in rows}
  result = {
    own: {
      name: report.median_ratio(speeds[own], others)
      for name, others in speeds.items()
      if name != own
    }
    for own in _OURS
  }
  for kind in ('peer', 'limit'):
    fitting = [row for row in rows if row['kind'] == kind]
    best = max(fitting, key=lambda row: row['median'], default={})
    result[f'best_{kind}'] = best.get('candidate')
  return result


def _show(result):
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
  columns = ('images/s', 'median', 'min', 'max', 'ours / it', 'mirrored / it')
  for layout, compared in result['ratios'].items():
    rows = [row for row in result['rows'] if row['layout'] == layout]
    rows.sort(key=lambda row: (row['kind'] == 'limit', -row['median']))
    lines = [
      (
        row['candidate'],
        *(f'{row[key]:,.0f}' for key in ('median', 'min', 'max')),
        *(f'{compared[own].get(row["candidate"], 1.0):.2f}' for own in _OURS),
      )
      for row in rows
    ]
    report.show(report.table(layout, columns, lines))
  report.show(_NOTES)
  if result['num_batches'] < _ENOUGH_BATCHES:
    report.show(
      f'{result["num_batches"]} batches in a measurement are too few beside'
      f' those made ahead: take {_ENOUGH_BATCHES} at least (--batches)'
    )
  for entry in result['skipped']:
    place = f' on {entry["layout"]}' if entry['layout'] else ''
    report.show(f'not measured: {entry["candidate"]}{place}: {entry["reason"]}')
