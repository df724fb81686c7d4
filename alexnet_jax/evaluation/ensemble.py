"""Measures several trained networks together.

python -m alexnet_jax.evaluation.ensemble DIR[:CHECKPOINT] DIR[:CHECKPOINT] ...
"""

import argparse
import pathlib
import sys

import numpy as np

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.training import transfer

_DESCRIPTION = """\
Measures several trained networks on a split, each alone and all together: the
probabilities that they give to each class are averaged, as those of the five
networks of Krizhevsky et al. 2012, section 6.1. Each network sees the images as
its own recipe says; classes and examples must be the same."""


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.ensemble',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    'members',
    nargs='+',
    metavar='DIR[:CHECKPOINT]',
    help='folder of a run, and final (default), newest, best or a step',
  )
  cli.add_split(parser)
  cli.add_crops(parser)
  cli.add_data_path(parser)
  cli.add_json(parser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments = _arguments(argv)
  return cli.run(lambda: _measure(arguments), json_output=arguments.json)


def _measure(arguments):
  """Measures the members and their mean; returns the command's result."""
  if len(arguments.members) < 2:
    raise UserError(
      f'there is one network, {arguments.members[0]}; an ensemble takes at'
      ' least two (evaluation.evaluate measures one)'
    )
  _check(arguments)
  total, members = 0.0, []
  for text in arguments.members:
    workdir, _ = split_member(text)
    run, measured = _predictions(text, arguments)
    seen = measured.predictions
    total = total + _by_class(seen)
    members.append({'workdir': workdir, 'step': int(run.state.step)})
    members[-1] |= {f'eval/{k}': measured.values[f'eval/{k}'] for k in _NAMES}
    print(_row(text, members[-1]), file=sys.stderr)
  counts = seen.counts
  joint = joint_values(total[counts] / len(members), seen.labels[counts])
  print(_row('together', joint), file=sys.stderr)
  crops = 'the center crop' if arguments.crops == 1 else 'ten crops'
  print(
    f'{arguments.split}, {counts.sum():,} examples, {crops}', file=sys.stderr
  )
  return {
    **joint,
    'members': members,
    'split': arguments.split,
    'crops': arguments.crops,
    'examples': int(counts.sum()),
  }


_NAMES = ('loss', 'top1', 'top5')


def split_member(text: str) -> tuple[str, str]:
  """Splits `DIR` or `DIR:CHECKPOINT` into (folder, checkpoint)."""
  folder, colon, checkpoint = text.rpartition(':')
  if not colon or pathlib.Path(text).is_dir():
    return text, 'final'
  return folder, checkpoint


def _check(arguments):
  """Opens each network and its data, before any of them is measured."""
  reference = None
  for text in arguments.members:
    run, loader = _open(text, arguments)
    found = run.class_names, loader.source.fingerprint
    reference = reference or found
    same = {
      'classes': transfer.same_classes(found[0], reference[0]),
      'examples': found[1] == reference[1],
    }
    for what, agrees in same.items():
      if not agrees:
        raise UserError(
          f'the {what} of {split_member(text)[0]} are not those of'
          f' {arguments.members[0]}; networks of an ensemble are measured on'
          ' the same data'
        )


def _open(text, arguments):
  """Opens a member: (run, loader of the split)."""
  from alexnet_jax.training import measure

  workdir, checkpoint = split_member(text)
  run = measure.load_network(
    workdir,
    checkpoint,
    arguments.data_path,
    top=sys.maxsize,
    crops=arguments.crops,
  )
  return run, measure.make_eval_loader(run, arguments.split)


def _predictions(text, arguments):
  """Measures a member: (run, measures with all predictions)."""
  from alexnet_jax.training import build
  from alexnet_jax.training import measure

  run, loader = _open(text, arguments)
  measure.warn_of_crops(run, arguments.crops)
  measured = measure.evaluate(
    run.steps.evaluate,
    run.state,
    build.make_eval_iter(run.config, loader, run.mesh, arguments.crops),
    run.to_devices,
    num_examples=loader.source.num_examples,
  )
  return run, measured


def _by_class(predictions):
  """Sorts probabilities by class: float64 [n, classes]."""
  whole = np.empty(predictions.probabilities.shape)
  np.put_along_axis(
    whole, predictions.classes, predictions.probabilities, axis=1
  )
  return whole


def joint_values(
  probabilities: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
  """Computes {eval/loss, eval/top1, eval/top5} of averaged probabilities.

  Args:
    probabilities: float64 [n, classes], n > 0; of equal ones the first class
      ranks higher.
    labels: int [n].
  """
  from alexnet_jax.training import metrics

  own = np.take_along_axis(probabilities, labels[:, None], axis=1)
  rank = metrics.label_ranks(probabilities, labels, np)
  # What all networks hold for impossible costs the most that float32 allows.
  least = np.finfo(np.float32).tiny
  return {
    'eval/loss': float(-np.log(np.maximum(own, least)).mean()),
    'eval/top1': float((rank < 1).mean()),
    'eval/top5': float((rank < 5).mean()),
  }


def _row(name, values):
  loss, top1, top5 = (values[f'eval/{key}'] for key in _NAMES)
  return (
    f'{name}: loss {loss:.4f}, top-1 error {1 - top1:.2%}, top-5 error'
    f' {1 - top5:.2%}'
  )


if __name__ == '__main__':
  sys.exit(main())
