"""bench data: images per second of the data pipeline beside others."""

import concurrent.futures
import contextlib
import importlib.util
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import simplejpeg
from sklearn.datasets import load_sample_images

from alexnet_jax import cli
from alexnet_jax.bench import data_peers, harness
from alexnet_jax.data import decoding, images, sources
from alexnet_jax.data.loader import num_cores
from alexnet_jax.errors import how_to_install, UserError

DESCRIPTION = """\
Images per second from the same photographs kept in several layouts: shuffled
uint8 batches [256, 224, 224, 3], randomly cropped and mirrored. Beside this
package's loader: others (those that are installed), and the bare parts of the
work as plain Python does them in threads, all in turn in every round."""

PEERS = ('tf.data', 'keras', 'torch', 'grain', 'spdl')
# {name: (kind, short side of what is kept, width it is resized to before the
# crop; 0: crops of random size are resized)}; a kind is a folder of JPEG files,
# array_record of JPEGs, or raw.
LAYOUTS = {
  'folder-375-to-256': ('folder', 375, 256),  # ImageNet's own files
  'folder-375-resized-crops': ('folder', 375, 0),
  'folder-320': ('folder', 320, 320),
  'folder-320-to-256': ('folder', 320, 256),
  'folder-256': ('folder', 256, 256),
  'tfds-375-to-256': ('tfds', 375, 256),
  'tfds-320': ('tfds', 320, 320),
  'tfds-320-to-256': ('tfds', 320, 256),
  'tfds-256': ('tfds', 256, 256),
  'raw-256': ('raw', 256, 256),
}
# Of JPEGs, by short side: with 99 those of 375 are nearly as heavy as
# ImageNet's, of 110 kB on average.
_QUALITIES = {375: 99, 320: 90, 256: 90}
# TensorFlow is to take no GPU, and to say less.
_ENVIRONMENT = {'CUDA_VISIBLE_DEVICES': '-1', 'TF_CPP_MIN_LOG_LEVEL': '3'}


def add_arguments(parser) -> None:
  """Adds the arguments of the subcommand to its parser."""
  add = parser.add_argument
  text = 'photographs, a subfolder per class (default: two of scikit-learn)'
  add('--path', type=cli.path, default='', metavar='DIR', help=text)
  for flag, default, text in (
    ('layouts', tuple(LAYOUTS), ', '.join(LAYOUTS)),
    ('peers', PEERS, f'{", ".join(PEERS)}, or none (default: the installed)'),
  ):
    options = {'type': harness.names, 'metavar': 'A,B', 'default': default}
    add(f'--{flag}', help=text, **options)
  ahead = 'in a measurement, 12 at least beside those made ahead;'
  for flag, default, text in (
    ('images', 3000, 'in every layout'),
    ('rounds', 5, 'in which everything is measured in turn'),
    ('batches', 24, f'{ahead} 8 times as many if raw'),
    ('batch_size', 256, 'images in a batch'),
  ):
    text += ' (default: %(default)s)'
    add(f'--{flag}', type=cli.positive, default=default, help=text)
  text = 'or processes of every candidate (default: one per core)'
  add('--threads', type=cli.positive, default=num_cores(), help=text)


def run(arguments, unknown: list[str]) -> dict:
  """Measures; returns the result of the command."""
  if unknown:
    raise UserError(f'unknown arguments: {shlex.join(unknown)}')
  if importlib.util.find_spec('cv2') is None:
    raise UserError(f'this needs OpenCV: {how_to_install("bench")}')
  layouts = arguments.layouts or tuple(LAYOUTS)
  harness.check_names('--layouts', layouts, LAYOUTS)
  peers = () if arguments.peers == ('none',) else arguments.peers
  harness.check_names('--peers', peers, PEERS)
  result = harness.header()
  entries, failed = [], []
  with contextlib.ExitStack() as stack:
    folder = tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_')
    folder = pathlib.Path(stack.enter_context(folder))
    sizes = arguments.batch_size, arguments.batches, arguments.threads
    tasks = [
      data_peers.Task(name, *LAYOUTS[name], folder, *sizes) for name in layouts
    ]
    distinct, file_sizes = _prepare(arguments.path, arguments.images, tasks)
    for name, (library, _) in data_peers.CANDIDATES.items():
      if library not in ('', *peers):
        continue
      harness.show(f'starting {name}')
      worker = harness.Worker(data_peers.__name__, name, _ENVIRONMENT)
      stack.enter_context(worker)
      with harness.noted(name, '', failed):
        lacking = worker.ask('check', tasks=tasks)
        for task in tasks:
          with harness.noted(name, task.name, failed):
            if reason := lacking.get(task.name):
              raise harness.WorkerError(reason)
            entries.append((name, task.name, worker, {'task': task}))
    rows = harness.measure(entries, arguments.rounds, failed)
  for layout in layouts:
    its = [row for row in rows if row['case'] == layout]
    columns = 'candidate median min max ours_by_it'
    harness.show_table(f'{layout}, images/s', its, columns)
  named = ('images', 'batch_size', 'batches', 'threads')
  facts = {name: getattr(arguments, name) for name in named}
  facts['path'] = arguments.path or 'two of scikit-learn'
  facts |= {'distinct': distinct, 'bytes_a_file': file_sizes}
  harness.show(', '.join(f'{name}: {value}' for name, value in facts.items()))
  return {**result, **facts, 'rows': rows, 'failed': failed}


def _prepare(path, count, tasks):
  """Makes `count` photographs in each layout.

  Returns (how many differ, {short side: mean bytes of a JPEG}).
  """
  if path:
    source = sources.make_source('folder', 'train', path=path, val_fraction=0.0)
    labels = [source.class_names[label] for label in source.labels]
  else:
    photographs = load_sample_images().images  # two
    labels = [f'class_{number}' for number in range(10)]
  harness.show(f'making {count} photographs')
  # Fewer than there are: spread over all classes.
  chosen = np.linspace(0, len(labels) - 1, min(count, len(labels))).astype(int)

  def write(number):
    index = chosen[number % len(chosen)]
    if path:
      pixels = decoding.decode(source.read(index)[0])
    else:
      pixels = photographs[index % 2]
    for size in {task.short_side for task in tasks}:
      resize = images.center_square if size == 256 else images.resize_short_side
      image = resize(pixels, size)
      quality = _QUALITIES[size]
      encoded = simplejpeg.encode_jpeg(image, quality, 'RGB', '420')
      parts = f'folder-{size}', 'train', labels[index], f'{number:05d}.jpg'
      file = tasks[0].folder.joinpath(*parts)
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(encoded)

  with concurrent.futures.ThreadPoolExecutor(tasks[0].threads) as pool:
    list(pool.map(write, range(count)))
  # Preparing wants a validation split; one image a class is enough.
  for train in tasks[0].folder.glob('folder-*/train/*/'):
    val = train.parents[1] / 'val' / train.name
    val.mkdir(parents=True)
    shutil.copy(min(train.iterdir()), val)
  for task in tasks:
    if task.kind != 'folder':
      _convert(task)
  sizes = {}
  for side in {task.short_side for task in tasks}:
    files = tasks[0].folder.glob(f'folder-{side}/*/*/*.jpg')
    sizes[side] = round(np.mean([file.stat().st_size for file in files]))
  return len(chosen) if path else len(photographs), sizes


def _convert(task):
  """Makes a layout of a folder by `alexnet_jax.data.prepare`."""
  kinds = {'raw': ['raw'], 'tfds': ['resize', f'--name={data_peers.TFDS_NAME}']}
  path, size = task.folder / f'folder-{task.short_side}', task.short_side
  command = [sys.executable, '-m', 'alexnet_jax.data.prepare']
  command += [*kinds[task.kind], '--source=folder', f'--path={path}']
  command += [f'--out={task.path}', f'--size={size}']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise UserError(f'making {task.path} failed:\n{done.stderr}')
