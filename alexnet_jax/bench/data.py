"""bench data: images per second of the data pipeline beside others."""

import argparse
import contextlib
import pathlib
import random
import shlex
import statistics
import sys
import tempfile

from alexnet_jax.bench import machine
from alexnet_jax.bench import report
from alexnet_jax.bench.arguments import positive
from alexnet_jax.bench.layouts import choose
from alexnet_jax.bench.layouts import LAYOUTS
from alexnet_jax.bench.layouts import Task
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Images per second from the same photographs kept in several layouts: shuffled
uint8 batches [256, 224, 224, 3], randomly cropped and mirrored, in the memory
of the process that asks for them. Beside this package's loader: others (those
that are installed), and the bare parts of the work as plain Python does them in
threads and in processes. Everything is measured in turn in every round; ratios
are taken within a round, and their median is reported."""

PEER_NAMES = ('tf.data', 'torch', 'grain', 'spdl', 'ffcv')
_OURS = ('ours', 'ours, mirrored on the host')
_RAW_FACTOR = 8  # raw squares go by that much faster
_PACKAGES = (
  *('alexnet_jax', 'grain', 'numba', 'numpy', 'simplejpeg'),
  *('opencv-python-headless', 'tensorflow', 'torch', 'spdl', 'ffcv'),
)


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'data',
    help='the data pipeline beside others and beside its limits',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add(
    '--path',
    default='',
    metavar='DIR',
    help='photographs, a subfolder per class (default: synthetic ones)',
  )
  add(
    '--cache',
    default='',
    metavar='DIR',
    help='keeps the layouts for the next time (default: a temporary folder)',
  )
  add('--images', type=positive, default=3000, help='default: 3000')
  names = ','.join(layout.name for layout in LAYOUTS)
  add('--layouts', default='', metavar='A,B', help=f'default: {names}')
  peers = ','.join(PEER_NAMES)
  add(
    '--peers',
    default=peers,
    metavar='A,B',
    help=f'of {peers}, or none (default: those that are installed)',
  )
  add('--rounds', type=positive, default=5, help='default: 5')
  add(
    '--batches',
    type=positive,
    default=24,
    help=f'in a measurement (default: 24); {_RAW_FACTOR} times as many if raw',
  )
  add('--batch_size', type=positive, default=256, help='default: 256')
  add(
    '--threads',
    type=positive,
    default=0,
    help='or processes of every contender (default: one per core)',
  )
  add('--chart', default='', metavar='FILE.png', help='draws the medians')
  parser.set_defaults(work=_work)


def _work(arguments, unknown):
  if unknown:
    raise UserError(f'unknown arguments: {shlex.join(unknown)}')
  from alexnet_jax.bench import photographs
  from alexnet_jax.data.loader import num_cores

  layouts = choose(arguments.layouts)
  _check_chart(arguments.chart)
  peers = _chosen_peers(arguments.peers)
  threads = arguments.threads or num_cores()
  with contextlib.ExitStack() as stack:
    cache = arguments.cache or stack.enter_context(
      tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_')
    )
    made = photographs.prepare(
      arguments.path, pathlib.Path(cache), arguments.images, layouts, threads
    )
    tasks = [Task(y, cache, arguments.batch_size, threads) for y in layouts]
    rows, skipped = measure(tasks, peers, arguments.rounds, arguments.batches)
  result = {
    'machine': machine.describe(),
    'versions': machine.versions(_PACKAGES),
    'command': shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]]),
    'photographs': made,
    'batch_size': arguments.batch_size,
    'num_batches': arguments.batches,
    'threads': threads,
    'rows': rows,
    'ratios': {y.name: ratios(rows, y.name) for y in layouts},
    'skipped': skipped,
  }
  report.show(result)
  if arguments.chart:
    from alexnet_jax.bench import chart

    chart.draw(result, arguments.chart)
  return result


def _check_chart(name):
  # Not after everything is measured.
  if name and pathlib.Path(name).suffix != '.png':
    raise UserError(f'--chart is {name!r}; it must end in .png')
  if name and not pathlib.Path(name).parent.is_dir():
    raise UserError(f'--chart: there is no folder {pathlib.Path(name).parent}')


def _chosen_peers(names):
  chosen = [] if names == 'none' else [n for n in names.split(',') if n]
  if unknown := [name for name in chosen if name not in PEER_NAMES]:
    raise UserError(f'--peers: {unknown} are none of {list(PEER_NAMES)}')
  return chosen


def measure(
  tasks: list[Task], peers: list[str], rounds: int, num_batches: int
) -> tuple[list[dict], list[dict]]:
  """Measures all contenders in turn in every round.

  Args:
    tasks: one for each layout.
    peers: libraries, of PEER_NAMES.
    rounds: measurements of each contender on each layout.
    num_batches: in one measurement, eight times as many if raw.

  Returns:
    (rows {layout, contender, kind: ours, peer or limit, images_per_second: of
    each round, median, min, max}; what was not measured {layout or '',
    contender, reason}).
  """
  from alexnet_jax.bench.processes import Worker

  with contextlib.ExitStack() as stack:
    workers, skipped = {}, []
    for library in ('ours', *peers, 'limits'):
      print(f'starting {library}', file=sys.stderr)
      worker = Worker(library)
      stack.callback(worker.close)
      workers[library] = worker
      if worker.missing:
        reason = f'not installed ({worker.missing})'
        skipped.append({'layout': '', 'contender': library, 'reason': reason})
    entries = []
    for task in tasks:
      applicable, others = _try_all(workers, task)
      entries += applicable
      skipped += others
    for number in range(rounds):
      _round(entries, number, num_batches)
  return [_row(entry) for entry in entries], skipped


def _try_all(workers, task):
  """What can be measured on a layout, and what not."""
  print(f'checking {task.layout.name}', file=sys.stderr)
  entries, skipped = [], []
  for library, worker in workers.items():
    kind = {'ours': 'ours', 'limits': 'limit'}.get(library, 'peer')
    for name in worker.contenders:
      reason = worker.check(name, task)
      if not reason:
        entries.append((worker, task, name, kind, []))
      elif kind != 'limit':
        skipped.append(
          {'layout': task.layout.name, 'contender': name, 'reason': reason}
        )
  return entries, skipped


def _round(entries, number, num_batches):
  """Measures everything once, in an order that differs from round to round."""
  order = list(entries)
  random.Random(number).shuffle(order)
  # A machine that drifts must not do so between two that are compared.
  order.sort(key=lambda entry: entry[1].layout.name)
  last = None
  for worker, task, name, _, rates in order:
    if task is not last:
      print(f'round {number + 1}: {task.layout.name}', file=sys.stderr)
      last = task
    factor = _RAW_FACTOR if task.layout.kind == 'raw' else 1
    rates.append(worker.measure(name, task, factor * num_batches))


def _row(entry):
  _, task, name, kind, rates = entry
  return {
    'layout': task.layout.name,
    'contender': name,
    'kind': kind,
    'images_per_second': rates,
    'median': statistics.median(rates),
    'min': min(rates),
    'max': max(rates),
  }


def ratios(rows: list[dict], layout: str) -> dict:
  """How this package's loader compares on one layout.

  Returns:
    {best_peer, best_limit: the names of those with the highest medians, of the
    limits among those that every loader has to keep; 'ours' and 'ours, mirrored
    on the host': {contender: the median over the rounds of the ratio of the two
    in the same round}}.
  """
  from alexnet_jax.bench import limits

  rows = [row for row in rows if row['layout'] == layout]
  peers = [row for row in rows if row['kind'] == 'peer']
  bounds = [row for row in rows if limits.bounds(row['contender'])]
  result = {
    'best_peer': _fastest(peers),
    'best_limit': _fastest(bounds),
  }
  rates = {row['contender']: row['images_per_second'] for row in rows}
  for own in _OURS:
    result[own] = {
      name: statistics.median(
        a / b for a, b in zip(rates[own], others, strict=True)
      )
      for name, others in rates.items()
      if name != own
    }
  return result


def _fastest(rows):
  best = max(rows, key=lambda row: row['median'], default=None)
  return best and best['contender']
