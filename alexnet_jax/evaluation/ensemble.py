"""Measures several trained networks together.

python -m alexnet_jax.evaluation.ensemble DIR[:CHECKPOINT] DIR[:CHECKPOINT] ...
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import sys

import numpy as np

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import evaluate

_DESCRIPTION = """\
Measures several trained networks on a split, each alone and all together: the
probabilities that they give to each class are averaged, as those of the five
networks of Krizhevsky et al. 2012, section 6.1. Each network sees the images as
its own recipe says; classes and examples must be the same."""
_MEASURES = 'eval/loss', 'eval/top1', 'eval/top5'


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('evaluation.ensemble', _DESCRIPTION)
  text = 'folder of a run, and final (default), newest, best or a step'
  cli.add_workdirs(parser, 'DIR[:CHECKPOINT]', text)
  cli.add_split(parser)
  cli.add_crops(parser)
  cli.add_data_path(parser)
  return cli.run_parsed(parser, argv, lambda given: measure(**vars(given)))


def measure(
  workdirs: Sequence[str],
  split: str = 'validation',
  crops: int = 1,
  data_path: str = '',
) -> dict:
  """Measures the members and their mean; returns the command's result.

  For the arguments see the command; crops are 1 or 10.
  """
  if len(workdirs) < 2:
    raise UserError(
      f'networks to measure together: {len(workdirs)}; give the folders of at'
      ' least two runs (evaluation.evaluate measures one)'
    )
  # All are opened before any of them is measured.
  opened = [_open(name, split, crops, data_path) for name in workdirs]
  _check(workdirs, opened, crops)
  total, members = 0.0, []
  for name, (run, loader, _) in zip(workdirs, opened, strict=True):
    measured = evaluate.measure_all(run, loader, crops)
    seen = measured.predictions
    by_class = np.empty(seen.probabilities.shape)  # float64 [n, classes]
    np.put_along_axis(by_class, seen.classes, seen.probabilities, axis=1)
    total = total + by_class
    values = {key: measured.values[key] for key in _MEASURES}
    step = int(run.state.step)
    members.append({'workdir': str(run.workdir), 'step': step, **values})
    _show(name, values)
  counts = seen.counts
  joint = joint_values(total[counts] / len(members), seen.labels[counts])
  _show('together', joint)
  count = int(counts.sum())
  print(
    f'{split}, {count:,} examples, {evaluate.CROPS[crops]}', file=sys.stderr
  )
  return {
    **joint,
    'members': members,
    'split': split,
    'crops': crops,
    'examples': count,
  }


def _open(name, split, crops, data_path):
  from alexnet_jax.evaluation import loading
  from alexnet_jax.training import state as state_lib

  folder, colon, checkpoint = name.rpartition(':')
  if not colon or pathlib.Path(name).is_dir():
    folder, checkpoint = name, 'final'
  run = loading.load_network(folder, checkpoint, data_path, sys.maxsize, crops)
  digest = state_lib.state_digest(state_lib.saved_tree(run.state))
  # All members stay on the devices, but not what their optimizers remember.
  run = dataclasses.replace(run, state=run.state.replace(opt_state=()))
  return run, loading.make_eval_loader(run, split), digest


def _check(workdirs, opened, crops):
  """Refuses the same network twice, and networks of other classes or data."""
  from alexnet_jax.evaluation import loading
  from alexnet_jax.training import transfer

  (first, first_loader, _), seen = opened[0], {}
  for name, (run, loader, digest) in zip(workdirs, opened, strict=True):
    loading.warn_of_crops(run, crops)
    if digest in seen:
      raise UserError(f'{name} is the network of {seen[digest]}; give it once')
    seen[digest] = name
    same = transfer.same_classes(run.class_names, first.class_names)
    fingerprints = loader.source.fingerprint, first_loader.source.fingerprint
    if not same or fingerprints[0] != fingerprints[1]:
      what = 'examples' if same else 'classes'
      raise UserError(
        f'the {what} of {run.workdir} are not those of {workdirs[0]};'
        ' networks of an ensemble are measured on the same data'
      )


def joint_values(probabilities, labels) -> dict[str, float]:
  """Computes {eval/loss, eval/top1, eval/top5} of averaged probabilities.

  They are float64 [n, classes], n > 0; of equal ones the first class ranks
  higher. The labels are int [n].
  """
  from alexnet_jax.training import metrics

  own = np.take_along_axis(probabilities, labels[:, None], axis=1)
  rank = metrics.label_ranks(probabilities, labels, np)
  # What all networks hold for impossible costs the most that float32 allows.
  least = np.finfo(np.float32).tiny
  loss = -np.log(np.maximum(own, least)).mean()
  means = map(float, (loss, (rank < 1).mean(), (rank < 5).mean()))
  return dict(zip(_MEASURES, means, strict=True))


def _show(name, values):
  loss, top1, top5 = values.values()
  print(
    f'{name}: loss {loss:.4f}, top-1 error {1 - top1:.2%}, top-5 error'
    f' {1 - top5:.2%}',
    file=sys.stderr,
  )


if __name__ == '__main__':
  sys.exit(main())
