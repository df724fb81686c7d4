"""bench marvin: accuracy and speed of a small network beside Keras."""

import argparse
import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

from alexnet_jax.bench import machine
from alexnet_jax.bench import marvin_summary
from alexnet_jax.bench.arguments import positive
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Trains the small network Marvin (configs/marvin.py) on 4,000 digits with this
package and with Keras on TensorFlow: the same pixels, network, optimizer, batch
size and number of epochs, each run in a process of its own, in turn for every
seed. Compares the accuracies on the 1,000 digits held out, and the seconds of
an epoch: training alone, without the first epoch, which compiles."""

RECIPE = 'configs/marvin.py'
_PACKAGES = (
  *('alexnet_jax', 'flax', 'jax', 'jaxlib', 'keras', 'numpy', 'optax'),
  'tensorflow',
)


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'marvin',
    help='accuracy and speed of a small network beside Keras',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--seeds', type=positive, default=5, help='how many (default: 5)')
  add('--epochs', type=positive, default=10, help='default: 10')
  add(
    '--keep',
    default='',
    metavar='DIR',
    help='a new folder for the runs (default: a temporary one)',
  )
  parser.set_defaults(work=_work)


def _work(arguments, unknown):
  if unknown:
    raise UserError(f'unknown arguments: {shlex.join(unknown)}')
  _check(arguments.keep)
  with tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_') as scratch:
    folder = pathlib.Path(arguments.keep or scratch)
    folder.mkdir(parents=True, exist_ok=True)
    runs = measure(folder, arguments.seeds, arguments.epochs)
  result = {
    'machine': machine.describe(),
    'versions': machine.versions(_PACKAGES),
    'command': shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]]),
    'recipe': RECIPE,
    'epochs': arguments.epochs,
    'runs': runs,
    **marvin_summary.summary(runs),
  }
  marvin_summary.show(result)
  return result


def _check(keep):
  if missing := [
    name
    for name in ('keras', 'tensorflow')
    if importlib.util.find_spec(name) is None
  ]:
    raise UserError(
      f'{" and ".join(missing)} cannot be imported, which this compares with:'
      " pip install 'tensorflow>=2.19' 'keras>=3.10'"
    )
  if not pathlib.Path(RECIPE).is_file():
    raise UserError(
      f'no recipe at {RECIPE!r}: start the command in the folder that has'
      ' configs/'
    )
  if keep and pathlib.Path(keep).exists():
    raise UserError(f'--keep: {keep} exists already; name a new folder')


def measure(folder: pathlib.Path, num_seeds: int, epochs: int) -> list[dict]:
  """Trains with every seed, ours and Keras in turn.

  Args:
    folder: for the runs.
    num_seeds: seeds 0 to num_seeds - 1.
    epochs: of each run.

  Returns:
    {seed, contender: ours or keras, accuracy, epoch_seconds: of the epochs
    but the first, parameters} of each run, in the order in which they ran.
  """
  from alexnet_jax import validation

  config = validation.load_config([f'--config={RECIPE}'])
  runs = []
  with tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_') as data_folder:
    data_file = pathlib.Path(data_folder) / 'data.npz'
    num_examples = _write_data(config, data_file)
    trainers = {
      'ours': lambda seed: _train_ours(config, num_examples, folder, seed),
      'keras': lambda seed: _train_keras(config, data_file, folder, seed),
    }
    config.num_epochs = float(epochs)
    for seed in range(num_seeds):
      # The other one first with every other seed: the machine may drift.
      for name in marvin_summary.CONTENDERS[:: -1 if seed % 2 else 1]:
        run = {'seed': seed, 'contender': name, **trainers[name](seed)}
        runs.append(run)
        print(marvin_summary.line(run), file=sys.stderr)
      _check_same_network(runs)
  return runs


def _check_same_network(runs):
  if len(counts := {run['parameters'] for run in runs}) > 1:
    raise RuntimeError(f'the networks differ: {counts} parameters')


def _write_data(config, path):
  """The digits as the network sees them; how many there are to train on."""
  import numpy as np

  from alexnet_jax.training import build

  arrays = {}
  for name, split in (('train', 'train'), ('val', 'validation')):
    loader = build.make_loader(config, split)
    examples = [loader.square(i) for i in range(loader.source.num_examples)]
    if split == 'train':
      mean = build.find_pixel_statistics(config, loader, path.parent).mean
    pixels = np.stack([pixels for pixels, _ in examples]).astype(np.float32)
    arrays[f'x_{name}'] = (pixels - mean) / np.float32(config.data.std)
    arrays[f'y_{name}'] = np.array([label for _, label in examples], np.int32)
  np.savez(path, **arrays)
  return len(arrays['y_train'])


def _train_ours(config, num_examples, folder, seed):
  from alexnet_jax.training import writers

  workdir = folder / f'ours_{seed}'
  # A row of the history for every epoch.
  every = max(1, num_examples // config.global_batch_size)
  out = _run(
    *('alexnet_jax.main', f'--config={RECIPE}', f'--workdir={workdir}'),
    *('--json', f'--config.seed={seed}', '--config.report=False'),
    f'--config.num_epochs={config.num_epochs}',
    f'--config.log_every_steps={every}',
  )
  result = json.loads(out.splitlines()[-1])
  rates = [
    row['images_per_second']
    for row in writers.read_rows(workdir)
    if 'images_per_second' in row
  ]
  return {
    'accuracy': result['eval/top1'],
    'epoch_seconds': [num_examples / rate for rate in rates[1:]],
    'parameters': result['parameters'],
  }


def _train_keras(config, data_file, folder, seed):
  from alexnet_jax.training import build

  answer = folder / f'keras_{seed}.json'
  settings = {
    'seed': seed,
    'epochs': int(config.num_epochs),
    'batch_size': config.global_batch_size,
    'learning_rate': build.learning_rate(config),
    **{key: config.optimizer[key] for key in ('b1', 'b2', 'epsilon')},
  }
  _run(
    *('alexnet_jax.bench.marvin_keras', str(data_file), str(answer)),
    json.dumps(settings),
  )
  result = json.loads(answer.read_text())
  return {**result, 'epoch_seconds': result['epoch_seconds'][1:]}


def _run(*arguments):
  """Runs a module in a process; returns its standard output."""
  environment = {**os.environ, 'KERAS_BACKEND': 'tensorflow'}
  # Flags of JAX's XLA, which would end TensorFlow.
  environment.pop('XLA_FLAGS', None)
  process = subprocess.run(
    [sys.executable, '-m', *arguments],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
    env=environment,
  )
  if process.returncode:
    raise RuntimeError(
      f'{shlex.join(arguments)} ended with {process.returncode}:\n'
      f'{process.stderr[-2000:]}'
    )
  return process.stdout
