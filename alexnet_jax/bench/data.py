"""bench data: images per second of the data pipeline beside others."""

import contextlib
import importlib.util
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

PEERS = ('tf.data', 'keras', 'torch', 'grain', 'spdl')


def add_arguments(parser) -> None:
  """Adds the arguments of the subcommand to its parser."""
  add = parser.add_argument
  text = 'photographs, a subfolder per class (default: two of scikit-learn)'
  add('--path', type=cli.path, default='', metavar='DIR', help=text)
  text = (
    'folder-320, folder-320-to-256, folder-256, tfds-320, tfds-256, raw-256'
  )
  add('--layouts', type=harness.names, default=(), metavar='A,B', help=text)
  text = f'{",".join(PEERS)}, or none (default: those that are installed)'
  add('--peers', type=harness.names, default=PEERS, metavar='A,B', help=text)
  ahead = 'in a measurement, 12 at least beside those made ahead;'
  for flag, default, text in (
    ('images', 3000, 'in every layout'),
    ('rounds', 5, 'in which everything is measured in turn'),
    ('batches', 24, f'{ahead} 8 times as many if raw'),
    ('batch_size', 256, 'images in a batch'),
  ):
    text += ' (default: %(default)s)'
    add(f'--{flag}', type=harness.positive, default=default, help=text)
  text = 'or processes of every candidate (default: one per core)'
  add('--threads', type=harness.positive, default=num_cores(), help=text)


def run(arguments, unknown: list[str]) -> dict:
  """Measures; returns the result of the command."""
  if unknown:
    raise UserError(f'unknown arguments: {shlex.join(unknown)}')
  if importlib.util.find_spec('cv2') is None:
    raise UserError(f'this needs OpenCV: {how_to_install("bench")}')
  from alexnet_jax.bench import data_peers

  layouts = arguments.layouts or tuple(data_peers.LAYOUTS)
  harness.check_names('--layouts', layouts, data_peers.LAYOUTS)
  peers = () if arguments.peers == ('none',) else arguments.peers
  harness.check_names('--peers', peers, PEERS)
  result = harness.header()
  with tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_') as folder:
    sizes = arguments.batch_size, arguments.batches, arguments.threads
    tasks = [
      data_peers.Task(name, *data_peers.LAYOUTS[name], folder, *sizes)
      for name in layouts
    ]
    result['distinct'] = data_peers.prepare(
      arguments.path, arguments.images, tasks
    )
    candidates = [
      name
      for name, (library, _) in data_peers.CANDIDATES.items()
      if library in ('', *peers)
    ]
    rows, failed = _measure(candidates, tasks, arguments.rounds)
  columns = 'candidate median min max ours_by_it'
  for layout in layouts:
    its = [row for row in rows if row['case'] == layout]
    harness.tell_table(f'{layout}, images/s', its, columns)
  given = {**vars(arguments), 'path': arguments.path or 'two of scikit-learn'}
  named = ('path', 'images', 'batch_size', 'batches', 'threads')
  result |= {name: given[name] for name in named}
  shown = ('distinct', *named)
  harness.tell(', '.join(f'{name}: {result[name]}' for name in shown))
  return {**result, 'rows': rows, 'failed': failed}


def _measure(candidates, tasks, rounds):
  """Returns rows of `harness.measure`, and what was not measured."""
  # TensorFlow is to take no GPU, and to say less.
  hidden = {'CUDA_VISIBLE_DEVICES': '-1', 'TF_CPP_MIN_LOG_LEVEL': '3'}
  entries, failed = [], []
  with contextlib.ExitStack() as stack:
    for name in candidates:
      harness.tell(f'starting {name}')
      worker = stack.enter_context(
        harness.Worker('alexnet_jax.bench.data_peers', name, hidden)
      )
      with harness.noted(name, '', failed):
        lacking = worker.ask('check', tasks=tasks)
        for task in tasks:
          with harness.noted(name, task.name, failed):
            if reason := lacking.get(task.name):
              raise harness.WorkerError(reason)
            entries.append((name, task.name, worker, {'task': task}))
    return harness.measure(entries, rounds, failed), failed
