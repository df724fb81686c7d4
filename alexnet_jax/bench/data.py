"""bench data: images per second of the data pipeline beside others."""

import contextlib
import functools
import importlib.util
import itertools
import random
import shlex
import tempfile

from alexnet_jax import cli
from alexnet_jax.bench import harness
from alexnet_jax.data.loader import num_cores
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

DESCRIPTION = """\
Images per second from the same photographs kept in several layouts: shuffled
uint8 batches [256, 224, 224, 3], randomly cropped and mirrored. Beside this
package's loader: others (those that are installed), and the bare parts of the
work as plain Python does them in threads, all in turn in every round."""

PEERS = ('tf.data', 'torch', 'grain', 'spdl')
OURS = ('ours', 'ours, mirrored on the host')
_RAW_FACTOR = 8  # raw squares go by that much faster
_NOTES = (
  "'ours' leaves the mirroring to the device; 'ours, mirrored on the host' does"
  ' all that the peers do. Those that decode in Python use simplejpeg, as ours'
  ' does, unless their name says otherwise. Where JPEGs are resized, they'
  ' interpolate, which is cheaper than the mean over areas that ours takes.'
  ' Limits do one part of the work, without order, batches or hand-over.'
)


def add_arguments(parser) -> None:
  """Adds the arguments of the subcommand to its parser."""
  add = parser.add_argument
  text = 'photographs, a subfolder per class (default: synthetic ones)'
  add('--path', type=cli.path, default='', metavar='DIR', help=text)
  text = (
    'folder-320, folder-320-to-256, folder-256, tfds-320, tfds-256, raw-256'
  )
  add('--layouts', type=harness.names, default=(), metavar='A,B', help=text)
  text = f'{",".join(PEERS)}, or none (default: those that are installed)'
  add('--peers', type=harness.names, default=PEERS, metavar='A,B', help=text)
  for flag, default, text in (
    ('images', 3000, 'in every layout'),
    ('rounds', 5, 'in which everything is measured in turn'),
    (
      'batches',
      24,
      'in a measurement, 12 at least beside those made ahead;'
      f' {_RAW_FACTOR} times as many if raw',
    ),
    ('batch_size', 256, 'images in a batch'),
  ):
    text += ' (default: %(default)s)'
    add(f'--{flag}', type=harness.positive, default=default, help=text)
  text = 'or processes of every candidate (default: one per core)'
  add('--threads', type=harness.positive, default=0, help=text)


def run(arguments, unknown: list[str]) -> dict:
  """Measures; returns the result of the command."""
  if unknown:
    raise UserError(f'unknown arguments: {shlex.join(unknown)}')
  if importlib.util.find_spec('cv2') is None:
    raise UserError(f'this needs OpenCV: {how_to_install("bench")}')
  from alexnet_jax.bench import data_peers

  harness.check_names('--layouts', arguments.layouts, data_peers.LAYOUTS)
  peers = () if arguments.peers == ('none',) else arguments.peers
  harness.check_names('--peers', peers, PEERS)
  threads = arguments.threads or num_cores()
  result = harness.header()
  with tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_') as folder:
    given = folder, arguments.batch_size, threads
    tasks = [
      data_peers.Task(name, *data_peers.LAYOUTS[name], *given)
      for name in arguments.layouts or data_peers.LAYOUTS
    ]
    made = data_peers.prepare(arguments.path, arguments.images, tasks)
    rows, skipped = _measure(tasks, peers, arguments.rounds, arguments.batches)
  result |= {
    'photographs': made,
    'batch_size': arguments.batch_size,
    'num_batches': arguments.batches,
    'threads': threads,
    'rows': rows,
    'ratios': {task.name: _ratios(rows, task.name) for task in tasks},
    'skipped': skipped,
  }
  _show(result)
  return result


def _measure(tasks, peers, rounds, num_batches):
  """Measures all candidates in turn in every round.

  Returns:
    (rows {layout, candidate, kind: ours, peer or limit, images_per_second: of
    each round, median, min, max}; what was not measured {layout or '',
    candidate, reason}).
  """
  # TensorFlow is to take no GPU, and to say less.
  hidden = {'CUDA_VISIBLE_DEVICES': '-1', 'TF_CPP_MIN_LOG_LEVEL': '3'}
  entries, skipped = [], []  # of entries: (row, method that measures)
  with contextlib.ExitStack() as stack:
    for library in ('ours', *peers, 'limits'):
      harness.tell(f'starting {library}')
      worker = stack.enter_context(
        harness.Worker(
          'alexnet_jax.bench.data_peers', library, environment=hidden
        )
      )
      kind = {'ours': 'ours', 'limits': 'limit'}.get(library, 'peer')
      try:
        names = worker.ask('candidates')
      except harness.UnsupportedError as error:
        reason = f'not installed ({error})'
        skipped.append({'layout': '', 'candidate': library, 'reason': reason})
        continue
      for name, task in itertools.product(names, tasks):
        row = {'layout': task.name, 'candidate': name}
        try:
          _ask(worker, 'check', candidate=name, task=task)
        except harness.UnsupportedError as error:
          if kind != 'limit':
            skipped.append({**row, 'reason': str(error)})
          continue
        times = _RAW_FACTOR if task.kind == 'raw' else 1
        row |= {'kind': kind, 'images_per_second': []}
        ask = functools.partial(
          _ask,
          worker,
          'measure',
          candidate=name,
          task=task,
          num_batches=times * num_batches,
        )
        entries.append((row, ask))
    for number in range(rounds):
      harness.tell(f'round {number + 1}')
      order = random.Random(number).sample(entries, len(entries))
      # A machine that drifts must not do so between two that are compared.
      for row, ask in sorted(order, key=lambda entry: entry[0]['layout']):
        row['images_per_second'].append(ask())
  rows = [row | harness.spread(row['images_per_second']) for row, _ in entries]
  return rows, skipped


def _ask(worker, method, **arguments):
  """Asks a worker; an error names candidate and layout."""
  try:
    return worker.ask(method, **arguments)
  except harness.UnsupportedError:
    raise
  except harness.WorkerError as error:
    layout = arguments['task'].name
    message = f'{arguments["candidate"]} on {layout}: {error}'
    raise harness.WorkerError(message) from error


def _ratios(rows, layout):
  """Returns {one of OURS: {candidate: the median ratio within a round}}."""
  speeds = {
    row['candidate']: row['images_per_second']
    for row in rows
    if row['layout'] == layout
  }
  return {
    own: {
      name: harness.median_ratio(speeds[own], others)
      for name, others in speeds.items()
    }
    for own in OURS
  }


def _show(result):
  made = result['photographs']
  harness.tell(
    f'{result["threads"]} threads; {made["images"]} images'
    f' ({made["distinct"]} distinct) of {made["source"]}'
  )
  columns = ('images/s', 'median', 'min', 'max', 'ours / it', 'mirrored / it')
  for layout, compared in result['ratios'].items():
    rows = [row for row in result['rows'] if row['layout'] == layout]
    rows.sort(key=lambda row: (row['kind'] == 'limit', -row['median']))
    lines = [
      (
        row['candidate'],
        *(round(row[key]) for key in ('median', 'min', 'max')),
        *(compared[own][row['candidate']] for own in OURS),
      )
      for row in rows
    ]
    harness.tell_table(layout, columns, lines)
  harness.tell(_NOTES)
  for entry in result['skipped']:
    place = f' on {entry["layout"]}' if entry['layout'] else ''
    harness.tell(
      f'not measured: {entry["candidate"]}{place}: {entry["reason"]}'
    )
