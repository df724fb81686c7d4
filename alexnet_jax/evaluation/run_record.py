"""Records of runs, read from their folders alone, and groups of repetitions."""

import dataclasses
import json
import math
import pathlib

import ml_collections
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import summary
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import schedule
from alexnet_jax.training import writers

MEASURES = {
  'loss': 'loss [nats]',
  'top1': 'top-1',
  'top5': 'top-5',
  'macro_precision': 'macro precision',
  'macro_recall': 'macro recall',
  'macro_f1': 'macro F1',
}
COSTS = {
  'parameters': 'parameters',
  'forward_flops_per_image': 'forward FLOP per image',
  'training_flops_per_image': 'training FLOP per image',
  'steps': 'steps',
  'epochs': 'epochs',
  'training_seconds': 'training time [s]',
  'images_per_second': 'images per second',
}
SPREAD = {
  **MEASURES,
  **{key: COSTS[key] for key in ('training_seconds', 'images_per_second')},
}


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """A run up to its newest checkpoint, as its folder alone tells it.

  Attributes:
    name: what tables call it.
    workdir: its folder.
    config: the config that it was trained with.
    rows: its history, see `training.writers.read_rows`.
    data: see `build.data_record`.
    step: of the newest checkpoint.
    final_step: of the state that it ends with: the newest, or the best.
    num_steps: how many it was to have.
    stopped: whether it was stopped early.
    values: measures of its final state, by name without `eval/`.
  """

  name: str
  workdir: pathlib.Path
  config: ml_collections.ConfigDict
  rows: list[dict]
  data: dict
  step: int
  final_step: int
  num_steps: int
  stopped: bool
  values: dict[str, float]

  @property
  def is_done(self) -> bool:
    return self.stopped or self.step >= self.num_steps

  def epochs(self, steps):
    """Converts steps to epochs; numbers or arrays."""
    return steps * self.config.global_batch_size / self.data['num_examples']

  def recipe(self) -> str:
    """Returns what repetitions have in common: all but the seed.

    Keys that leave training and data as they are do not count.
    """
    free = {name for name, key in config_lib.KEYS.items() if key.free}
    free = (free | {'seed'}) - {'num_epochs', 'num_steps'}
    flat = config_lib.flatten(self.config)
    kept = {key: value for key, value in flat.items() if key not in free}
    data = self.data['fingerprint'], self.data['eval_fingerprint']
    return json.dumps([kept, data], sort_keys=True)


def load(workdir: str, name: str) -> RunRecord:
  """Reads the folder of a run, which may be training at the same time.

  Raises:
    UserError: if there is no run, or no checkpoint that can be read.
  """
  step, saved = checkpoint.read_newest(workdir)
  config, data, progress = saved.config, saved.data, saved.progress
  if 'num_examples' not in data:
    raise UserError(
      f'{workdir} holds weights of elsewhere: there is no training to compare'
      ' (evaluation.evaluate measures them, evaluation.ensemble several)'
    )
  final_step = progress.final_step(config, step)
  rows = [r for r in writers.read_rows(workdir) if r['step'] <= step]
  values = progress.last_evaluation
  for row in rows:
    if row['step'] == final_step and 'eval/loss' in row:
      values = row
  return RunRecord(
    name=name,
    workdir=pathlib.Path(workdir),
    config=config,
    rows=rows,
    data=data,
    step=step,
    final_step=final_step,
    num_steps=schedule.resolve_durations(
      config, data['num_examples']
    ).num_steps,
    stopped=progress.stopping.stopped,
    values={
      key.removeprefix('eval/'): value
      for key, value in values.items()
      if key.startswith('eval/')
    },
  )


def numbers(run: RunRecord) -> dict:
  """Returns what a run cost and how good it is; None where it is not known.

  {name, workdir, seed, fingerprint, eval_fingerprint, parameters, ..., loss,
  top1, ...}; JSON.
  """
  model = build.make_model(run.config, len(run.data['class_names']))
  shape = build.image_shape(run.config)
  return {
    'name': run.name,
    'workdir': str(run.workdir),
    'seed': run.config.seed,
    'fingerprint': run.data['fingerprint'],
    'eval_fingerprint': run.data['eval_fingerprint'],
    **summary.totals(*summary.layer_table(model, shape)),
    'steps': run.step,
    'epochs': run.epochs(run.step),
    **speed(run.rows, run.step, run.config.global_batch_size),
    **{name: run.values.get(name) for name in MEASURES},
  }


def speed(rows: list[dict], num_steps: int, batch_size: int) -> dict:
  """Returns {training_seconds, images_per_second}, of rows with a speed.

  A row knows that of the steps since the row before it, without compilation,
  evaluation and saving. Steps without one count as the others do.
  """
  steps, seconds, before = 0, 0.0, 0
  for row in rows:
    if 'train/loss' not in row:
      continue
    count, before = row['step'] - before, row['step']
    if throughput := row.get('images_per_second'):
      steps += count
      seconds += count * batch_size / throughput
  if not steps:
    return {'training_seconds': None, 'images_per_second': None}
  return {
    'training_seconds': seconds * num_steps / steps,
    'images_per_second': steps * batch_size / seconds,
  }


def groups(runs: list[RunRecord], rows: list[dict]) -> list[dict]:
  """Groups the runs that differ in nothing but the seed.

  Args:
    runs: the runs.
    rows: their `numbers`.

  Returns:
    [{runs: names, seeds, top1: {mean, deviation, standard_error}, ...}]; JSON.
    The deviation is that of the sample (n - 1), the error that of the mean.
  """
  found = {}
  for run, row in zip(runs, rows, strict=True):
    found.setdefault(run.recipe(), []).append(row)
  result = []
  for members in found.values():
    group = {
      'runs': [row['name'] for row in members],
      'seeds': [row['seed'] for row in members],
    }
    if len(set(group['seeds'])) < 2:
      continue
    for key in SPREAD:
      values = [row[key] for row in members]
      if None not in values:
        deviation = float(np.std(values, ddof=1))
        group[key] = {
          'mean': float(np.mean(values)),
          'deviation': deviation,
          'standard_error': deviation / math.sqrt(len(values)),
        }
    result.append(group)
  return result


def notes(runs: list[RunRecord]) -> list[str]:
  """Returns sentences on what speaks against comparing the runs."""
  found = []
  for which, key, meaning in (
    ('validation', 'eval_fingerprint', 'their measures do not compare'),
    ('training', 'fingerprint', 'they did not learn from the same images'),
  ):
    sets = {}
    for run in runs:
      sets.setdefault(run.data[key], []).append(run.name)
    if len(sets) > 1:
      names = ' | '.join(', '.join(members) for members in sets.values())
      found.append(f'The {which} data differs, so {meaning}: {names}.')
  open_runs = [
    f'{run.name} (step {run.step} of {run.num_steps})'
    for run in runs
    if not run.is_done
  ]
  if open_runs:
    found.append(f'Not done yet: {", ".join(open_runs)}.')
  return found
