"""Measures a saved run.

python -m alexnet_jax.evaluation.evaluate --workdir DIR [--split validation]
"""

import argparse
import sys

from alexnet_jax import command
from alexnet_jax import huge_pages


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.evaluate',
    description='Measures a saved run.',
  )
  parser.add_argument(
    '--split',
    default='validation',
    help='validation (default) or train; for TFDS also its own split names',
  )
  command.add_run(parser)
  command.add_data_path(parser)
  command.add_json(parser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  arguments = _arguments(argv)
  return command.run(
    lambda: _evaluate(
      arguments.workdir,
      arguments.split,
      arguments.checkpoint,
      arguments.data_path,
    ),
    json_output=arguments.json,
  )


def _evaluate(workdir, split, which, data_path):
  """Measures a checkpoint on a split; the command's result."""
  from alexnet_jax import assemble
  from alexnet_jax.evaluation import measure
  from alexnet_jax.evaluation import saved_run
  from alexnet_jax.training import state as state_lib

  run = saved_run.load(workdir, which, data_path)
  loader = saved_run.make_eval_loader(run, split)
  batches = assemble.make_eval_iter(run.config, loader, run.mesh)
  values = measure.evaluate(
    run.steps.evaluate, run.state, batches, run.to_devices
  ).values
  step = int(run.state.step)
  count = loader.source.num_examples - len(loader.unreadable)
  print(
    f'{workdir}, step {step}, {split} ({count:,} examples):'
    f' loss {values["eval/loss"]:.4f}, top-1 {values["eval/top1"]:.4f},'
    f' top-5 {values["eval/top5"]:.4f}',
    file=sys.stderr,
  )
  return {
    **values,
    'split': split,
    'examples': count,
    'unreadable': len(loader.unreadable),
    'step': step,
    'parameters': state_lib.num_parameters(run.state),
    'state_digest': state_lib.state_digest(state_lib.saved_tree(run.state)),
  }


if __name__ == '__main__':
  huge_pages.restart()
  sys.exit(main())
