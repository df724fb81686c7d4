"""Starts the commands as processes, on a network that takes a second."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
MAIN = [sys.executable, '-m', 'alexnet_jax.main']

# 96 synthetic images of four classes, 12 steps an epoch.
TINY = {
  'num_epochs': 0.0,
  'num_steps': 40,
  'global_batch_size': 8,
  'eval_every_epochs': 0.0,
  'eval_every_steps': 10,
  'log_every_steps': 4,
  'report': False,
  'data.source': 'synthetic',
  'data.synthetic_examples': 96,
  'data.synthetic_classes': 4,
  'data.resize_size': 28,
  'data.crop_size': 24,
  'data.std': 60.0,
  'model.channels': (8, 8),
  'model.kernels': (3, 3),
  'model.strides': (1, 1),
  'model.paddings': ('SAME', 'SAME'),
  'model.groups': (1, 1),
  'model.pool_layers': (1, 2),
  'model.bias_layers': (2,),
  'model.hidden': (16,),
  'model.kernel_init': 'he',
  'model.bias_init': 0.1,
  'optimizer.learning_rate': 0.02,
}


# The same for a command line.
OVERRIDES = [f'--config.{key}={value}' for key, value in TINY.items()]


def write_recipe(folder: pathlib.Path, **changes) -> pathlib.Path:
  """A recipe file with `TINY` and the given changes (a.b is written a__b)."""
  values = TINY | {k.replace('__', '.'): v for k, v in changes.items()}
  if values['data.source'] != 'synthetic':
    values = {k: v for k, v in values.items() if '.synthetic_' not in k}
  lines = [f'  config.{key} = {value!r}\n' for key, value in values.items()]
  path = folder / 'recipe.py'
  path.write_text(
    'from alexnet_jax.config import make_config\n\n\n'
    'def get_config():\n  config = make_config()\n'
    + ''.join(lines)
    + '  return config\n'
  )
  return path


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
  """Returns {path: content} of all files of a run but its lock."""
  files = [p for p in folder.rglob('*') if p.is_file() and p.name != '.lock']
  return {path: path.read_bytes() for path in files}


def start(*arguments, **options) -> subprocess.Popen:
  """Starts a command; output and errors can be read as text."""
  return subprocess.Popen(
    [str(a) for a in arguments],
    cwd=options.pop('cwd', ROOT),
    stdout=subprocess.PIPE,
    stderr=options.pop('stderr', subprocess.PIPE),
    text=True,
    env={**os.environ, **options.pop('env', {})},
    **options,
  )


def run(*arguments, **options) -> tuple[int, str, str]:
  """Runs a command to its end: (exit code, standard output, errors)."""
  with start(*arguments, **options) as process:
    try:
      out, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
      process.kill()
      raise
  return process.returncode, out, err


def done(answer) -> list:
  """[result, errors] of a `call` that ended with 0."""
  code, *rest = answer
  assert code == 0, rest[-1]
  return rest


def refused(answer, *words) -> str:
  """Errors of a `call` that ended with 2 and said these words."""
  code, _, err = answer
  assert code == 2, err
  for word in words:
    assert word in err
  return err


def train_here(recipe, workdir, *overrides, **options) -> dict:
  """Trains in this process; what `loop.train_and_evaluate` returns or raises.

  Args:
    **options: of `loop.Hooks`.
  """
  # Commands that are started import this module first.
  from alexnet_jax import cli, validation
  from alexnet_jax.training import guards, loop

  config = validation.load_config([f'--config={recipe}', *overrides])
  stop, console = guards.StopSignal(), cli.Console()
  hooks = loop.Hooks(**options)
  return loop.train_and_evaluate(config, str(workdir), stop, console, hooks)
