"""bench growth: speed and memory as the work grows."""

from collections.abc import Iterator
import io
import json
import os
import pathlib
import random
import shlex
import statistics
import tempfile
import time

import numpy as np

from alexnet_jax import cli
from alexnet_jax.bench import harness
from alexnet_jax.data import raw
from alexnet_jax.errors import UserError

DESCRIPTION = """\
How images per second, memory (but for mapped files) and the time to open change
with the number of examples (of a folder, whose files are links to a few, and
of a raw set, whose pixels are zeros), of threads, of examples in a batch, and
of classes (in evaluation, with the network of the quickstart). Every case has
a process of its own in every round: the default makes a million files, and took
eight minutes on two cores."""

_SIZE, _CROP = 40, 36  # pixels, as in the quickstart
_LINKS = 20_000  # of a file; file systems allow no more than so many
_IMAGES = 16_384  # that are timed in each case, at least
_EVALUATED = 20_480
_AXES = {
  'examples': (1_000, 10_000, 100_000, 1_000_000),
  'classes': (10, 100, 1_000, 20_000),
  'threads': (1, 2, 4),
  'batch_size': (32, 128, 512, 1_024),
}
_PLAIN = {'examples': 10_000, 'threads': 0, 'batch_size': 256}
_ROWS = 'kind axis value images_per_second open_seconds megabytes'


def _numbers(text):
  return tuple(harness.positive(part) for part in text.split(',') if part)


def add_arguments(parser) -> None:
  """Adds the arguments of the subcommand to its parser."""
  add = parser.add_argument
  for axis, values in _AXES.items():
    text = f'default: {",".join(map(str, values))}'
    add(f'--{axis}', type=_numbers, default=values, metavar='A,B', help=text)
  add('--rounds', type=harness.positive, default=3, help='default: 3')
  text = 'where the plot goes (default: growth.png)'
  add('--plot', type=cli.path, default='growth.png', metavar='FILE', help=text)


def run(arguments, unknown: list[str]) -> dict:
  """Measures, and draws the plot; returns the result of the command."""
  if unknown:
    raise UserError(f'unknown arguments: {shlex.join(unknown)}')
  if not (plot := pathlib.Path(arguments.plot)).parent.is_dir():
    raise UserError(f'--plot: there is no folder {plot.parent}')
  batch_size, most = _PLAIN['batch_size'], _PLAIN['examples']
  for axis, least, largest in (
    ('examples', batch_size, 10**7),
    ('classes', 2, 10**6),
    ('batch_size', 1, most),
  ):
    for number in getattr(arguments, axis):
      if not least <= number <= largest:
        raise UserError(f'--{axis}: {number}; give {least:,} to {largest:,}')
  result = harness.header()
  with tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_') as folder:
    cases = list(_cases(arguments, pathlib.Path(folder)))
    measured = [[] for _ in cases]
    for number in range(arguments.rounds):
      harness.tell(f'round {number + 1} of {arguments.rounds}')
      for i in random.Random(number).sample(range(len(cases)), len(cases)):
        with harness.Worker(__name__, harness.OURS, {}) as worker:
          measured[i].append(worker.ask('measure', case=cases[i]))
  rows = []
  for case, rounds in zip(cases, measured, strict=True):
    names = {key: case[key] for key in ('kind', 'axis', 'value')}
    values = {key: [own[key] for own in rounds] for key in rounds[0]}
    medians = {key: statistics.median(values[key]) for key in values}
    rows.append({**names, **medians, 'rounds': values['images_per_second']})
  harness.tell_table('medians', rows, _ROWS)
  _draw(rows, plot)
  harness.tell(f'drawn: {plot}')
  return {**result, 'rows': rows, 'plot': str(plot)}


def _cases(arguments, folder) -> Iterator[dict]:
  """Makes the data sets; yields what `Handler.measure` takes."""
  made = {}
  for axis in _AXES:
    is_evaluation = axis == 'classes'
    for value in getattr(arguments, axis):
      own = {'examples': max(value, _EVALUATED)} if is_evaluation else {}
      case = {**_PLAIN, 'axis': axis, 'value': value, axis: value, **own}
      classes = case.pop('classes', 10)
      for kind in ('raw',) if is_evaluation else ('folder', 'raw'):
        key = kind, case['examples'], classes
        if key not in made:
          harness.tell('making ' + ' '.join(map(str, key)))
          make = _make_raw if kind == 'raw' else _make_folder
          made[key] = str(folder / '-'.join(map(str, key)))
          make(pathlib.Path(made[key]), *key[1:])
        shown = 'evaluation' if is_evaluation else kind
        yield {**case, 'kind': shown, 'path': made[key]}


def _make_folder(root, num_examples, num_classes):
  """Makes a folder of JPEGs that are hard links to a few of them."""
  import simplejpeg
  from sklearn.datasets import load_sample_images

  picture = load_sample_images().images[0]
  for split, count in (('train', num_examples), ('val', num_classes)):
    for label in range(num_classes):
      folder = root / split / f'class_{label:02d}'
      folder.mkdir(parents=True)
      for number in range(len(range(label, count, num_classes))):
        first = f'{folder}/{number - number % _LINKS:08d}.jpg'
        if number % _LINKS:
          os.link(first, f'{folder}/{number:08d}.jpg')
          continue
        top = label * 16 + number // _LINKS
        square = np.ascontiguousarray(picture[top : top + 64, :64])
        encoded = simplejpeg.encode_jpeg(square, 90, 'RGB', '420')
        pathlib.Path(first).write_bytes(encoded)


def _make_raw(root, num_examples, num_classes):
  """Makes a raw set; its zeros take no room on most file systems."""
  root.mkdir()
  splits = {}
  for split in ('train', 'validation'):
    file, labels = f'{split}-00000-of-00001.npy', f'{split}-labels.npy'
    shape = num_examples, _SIZE, _SIZE, 3
    np.lib.format.open_memmap(root / file, 'w+', np.uint8, shape)
    np.save(root / labels, np.arange(num_examples, dtype='i4') % num_classes)
    shard = {'file': file, 'sha256': '', 'num_examples': num_examples}
    splits[split] = {
      'num_examples': num_examples,
      'shards': [shard],
      'labels': {'file': labels, 'sha256': ''},
      'skipped': [],
      'rgb': {'mean': [0.0] * 3, 'covariance': [[0.0] * 3] * 3},
    }
  manifest = {'format': raw.FORMAT, 'image_size': _SIZE, 'settings': {}}
  manifest['class_names'] = [f'class_{number}' for number in range(num_classes)]
  text = json.dumps({**manifest, 'splits': splits})
  (root / raw.MANIFEST).write_text(text)


class Handler:
  """Measures one case; see `harness`."""

  def __init__(self, candidate: str):
    """Takes a name that means nothing: all cases are ours."""

  def measure(self, case: dict) -> dict[str, float]:
    """Returns {images_per_second, open_seconds, megabytes}.

    The memory is that of the process at the end, without mapped files.
    """
    measure = _evaluate if case['kind'] == 'evaluation' else _load
    names = 'images_per_second', 'open_seconds', 'megabytes'
    values = *measure(case), harness.memory('RssAnon') / 1e6
    return dict(zip(names, values, strict=True))


def _load(case):
  from alexnet_jax.data import batches, sources

  start = time.perf_counter()
  source = sources.make_source(case['kind'], 'train', path=case['path'])
  opening = time.perf_counter() - start
  sizes = {'crop_size': _CROP, 'resize_size': _SIZE}
  sizes |= {'batch_size': case['batch_size'], 'num_threads': case['threads']}
  options = batches.BatchOptions(**sizes)
  iterator = iter(batches.train_batches(source, options))
  for _ in range(8):
    next(iterator)
  count = -(-_IMAGES // case['batch_size'])
  start = time.perf_counter()
  for _ in range(count):
    next(iterator)
  seconds = time.perf_counter() - start
  return count * case['batch_size'] / seconds, opening


def _evaluate(case):
  """Measures the second of two evaluations: the first one compiles."""
  from alexnet_jax import validation
  from alexnet_jax.training import build, guards, measure, parallel, resume

  keys = {'source': 'raw', 'path': case['path'], 'mean': 'none'}
  given = [f'--config.data.{key}={value}' for key, value in keys.items()]
  config = validation.load_config(['--config=quickstart', *given])
  console, mesh = cli.Console(io.StringIO()), parallel.make_mesh()
  with tempfile.TemporaryDirectory() as folder:
    start, path = time.perf_counter(), pathlib.Path(folder)
    run = resume.RunContext(config, path, guards.StopSignal(), console)
    opening = time.perf_counter() - start
    state, _ = resume.initial_state(run)
    for _ in range(2):
      iterator = build.make_eval_iter(config, run.eval_loader, mesh)
      start = time.perf_counter()
      measure.evaluate(run.steps.evaluate, state, iterator, run.to_devices)
      seconds = time.perf_counter() - start
  return case['examples'] / seconds, opening


def _draw(rows, path):
  """Draws images per second and memory over each axis."""
  from matplotlib.figure import Figure

  from alexnet_jax.evaluation import figures

  figure = Figure(figsize=(12, 6), dpi=110, layout='constrained')
  panels = figure.subplots(2, len(_AXES), sharex='col', sharey='row')
  names = {'images_per_second': 'images/s', 'megabytes': 'MB of memory'}
  for line, (key, name) in zip(panels, names.items(), strict=True):
    line[0].set_ylabel(name)
    for panel, axis in zip(line, _AXES, strict=True):
      its = [row for row in rows if row['axis'] == axis]
      for kind in dict.fromkeys(row['kind'] for row in its):
        own = [(row['value'], row[key]) for row in its if row['kind'] == kind]
        panel.plot(*zip(*own, strict=True), marker='o', label=kind)
      values = sorted({row['value'] for row in its})
      labels = [f'{v // 1000:,}k' if v >= 10_000 else f'{v:,}' for v in values]
      panel.set(xscale='log', title=axis.replace('_', ' '))
      panel.set_xticks(values, labels, fontsize='small')
      panel.set_xticks([], minor=True)
      panel.grid(alpha=0.3)
      if its:
        panel.legend(fontsize='small')
  panels[0, 0].set_yscale('log')
  panels[1, 0].set_ylim(0, 1.1 * max(row['megabytes'] for row in rows))
  figures.save(figure, path)
