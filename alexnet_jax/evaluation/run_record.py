"""What the folder of a run tells without its data and its parameters."""

import dataclasses
import json
import pathlib

import ml_collections
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import summary
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import writers

MEASURES = ('loss', 'top1', 'top5', 'macro_precision', 'macro_recall')
MEASURES += ('macro_f1',)


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """A run up to its newest checkpoint.

  Attributes:
    name: what tables call it.
    workdir: its folder.
    config: that it was trained with.
    rows: its history, see `training.writers.read_rows`.
    data: see `build.data_record`.
    step: of the newest checkpoint.
    final_step: of the state that it ends with: the newest, or the best.
    num_steps: that it was to have.
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
    """Steps as epochs; numbers or arrays."""
    return steps * self.config.global_batch_size / self.data['num_examples']

  def recipe(self) -> str:
    """The config without what leaves training and data as they are.

    Runs that have it in common and another seed are repetitions.
    """
    free = {*config_lib.FREE_KEYS} - {'num_epochs', 'num_steps'}
    flat = config_lib.flatten(self.config)
    kept = {k: v for k, v in flat.items() if k not in free and k != 'seed'}
    return json.dumps([kept, self.fingerprints()], sort_keys=True)

  def fingerprints(self) -> tuple[str, str]:
    """Of the training and of the validation examples."""
    return self.data['fingerprint'], self.data['eval_fingerprint']


def load(workdir: str, name: str) -> RunRecord:
  """Reads the folder of a run, which may be training at the same time.

  Raises:
    UserError: if there is no run, or no checkpoint that can be read.
  """
  path = pathlib.Path(workdir)
  step, saved = checkpoint.read_newest(path)
  config, progress = saved.config, saved.progress
  if 'num_examples' not in saved.data:
    raise UserError(
      f'{workdir} holds weights of elsewhere: there is no training to compare'
      ' (evaluation.evaluate measures them, evaluation.ensemble several)'
    )
  final_step = progress.final_step(config, step)
  rows = [row for row in writers.read_rows(path) if row['step'] <= step]
  values = progress.last_evaluation
  for row in rows:
    if row['step'] == final_step and 'eval/loss' in row:
      values = row
  durations = config_lib.resolve_durations(config, saved.data['num_examples'])
  return RunRecord(
    name=name,
    workdir=path,
    config=config,
    rows=rows,
    data=saved.data,
    step=step,
    final_step=final_step,
    num_steps=durations.num_steps,
    stopped=progress.stopping.stopped,
    values={
      key.removeprefix('eval/'): value
      for key, value in values.items()
      if key.startswith('eval/')
    },
  )


def numbers(run: RunRecord) -> dict:
  """What a run cost and how good it is, as JSON; None where it is not known.

  {parameters, forward_flops_per_image, training_flops_per_image, steps, epochs,
  training_seconds, images_per_second, loss, top1, ...}.
  """
  model = build.make_model(run.config, len(run.data['class_names']))
  shape = build.image_shape(run.config)
  return {
    **summary.totals(*summary.layer_table(model, shape)),
    'steps': run.step,
    'epochs': run.epochs(run.step),
    **_speed(run),
    **{name: run.values.get(name) for name in MEASURES},
  }


def _speed(run):
  """{training_seconds, images_per_second}, of the rows that know their speed.

  A row knows that of the steps since the row before it, without compilation,
  evaluation and saving. Steps beside such rows count as the others do.
  """
  steps, seconds, before = 0, 0.0, 0
  for row in run.rows:
    if 'train/loss' not in row:
      continue
    count, before = row['step'] - before, row['step']
    if speed := row.get('images_per_second'):
      steps += count
      seconds += count * run.config.global_batch_size / speed
  if not steps:
    return {'training_seconds': None, 'images_per_second': None}
  return {
    'training_seconds': seconds * run.step / steps,
    'images_per_second': steps * run.config.global_batch_size / seconds,
  }


def groups(runs: list[RunRecord]) -> list[list[int]]:
  """Positions of the runs that differ in nothing but the seed.

  Only of what was repeated: groups have two seeds at least.
  """
  found = {}
  for position, run in enumerate(runs):
    found.setdefault(run.recipe(), []).append(position)
  return [
    group
    for group in found.values()
    if len({runs[position].config.seed for position in group}) > 1
  ]


def spread(values: list[float]) -> dict[str, float]:
  """{mean, deviation} with the deviation of a sample (n - 1)."""
  return {
    'mean': float(np.mean(values)),
    'deviation': float(np.std(values, ddof=1)),
  }


def data_notes(runs: list[RunRecord]) -> list[str]:
  """Sentences on what speaks against comparing the runs; empty: nothing."""
  notes = []
  for which, key, meaning in (
    ('validation', 'eval_fingerprint', 'their measures do not compare'),
    ('training', 'fingerprint', 'they did not learn from the same images'),
  ):
    sets = data_sets(runs, key)
    if len(set(sets)) > 1:
      parts = [
        f'set {letter}: '
        + ', '.join(
          run.name for run, own in zip(runs, sets, strict=True) if own == letter
        )
        for letter in sorted(set(sets))
      ]
      notes.append(
        f'The {which} data differs, so {meaning}. {"; ".join(parts)}.'
      )
  if open_runs := [run for run in runs if not run.is_done]:
    notes.append(
      'Not done yet: '
      + ', '.join(
        f'{run.name} (step {run.step} of {run.num_steps})' for run in open_runs
      )
      + '.'
    )
  return notes


def data_sets(runs: list[RunRecord], key: str) -> list[str]:
  """A letter for the data of each run; the same data, the same letter.

  Args:
    runs: the runs.
    key: `fingerprint` or `eval_fingerprint`.
  """
  known = list(dict.fromkeys(run.data[key] for run in runs))
  return [letter(known.index(run.data[key])) for run in runs]


def letter(number: int) -> str:
  """A, B, ..., Z, A2, B2, ..."""
  round_, place = divmod(number, 26)
  return chr(ord('A') + place) + (str(round_ + 1) if round_ else '')
