"""Measures a saved run.

python -m alexnet_jax.evaluation.evaluate --workdir DIR [--crops 10]
"""

import argparse
import sys
import time

from alexnet_jax import cli


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.evaluate',
    description='Measures a saved run.',
  )
  cli.add_split(parser)
  cli.add_crops(parser)
  cli.add_run(parser)
  cli.add_data_path(parser)
  cli.add_json(parser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments = _arguments(argv)
  return cli.run(lambda: _evaluate(arguments), json_output=arguments.json)


def _evaluate(arguments):
  """Measures a checkpoint on a split; returns the command's result."""
  from alexnet_jax.training import build
  from alexnet_jax.training import measure
  from alexnet_jax.training import state as state_lib

  workdir, split, crops = arguments.workdir, arguments.split, arguments.crops
  run = measure.load_network(
    workdir, arguments.checkpoint, arguments.data_path, crops=crops
  )
  loader = measure.make_eval_loader(run, split)
  measure.warn_of_crops(run, crops)
  _compile(run, loader, crops)
  begun = time.perf_counter()
  values = measure.evaluate(
    run.steps.evaluate,
    run.state,
    build.make_eval_iter(run.config, loader, run.mesh, crops),
    run.to_devices,
  ).values
  step = int(run.state.step)
  count = loader.source.num_examples - len(loader.unreadable)
  throughput = count / (time.perf_counter() - begun)
  print(
    f'{workdir}, step {step}, {split} ({count:,} examples, '
    f'{"the center crop" if crops == 1 else "ten crops"}):'
    f' loss {values["eval/loss"]:.4f}, top-1 {values["eval/top1"]:.4f},'
    f' top-5 {values["eval/top5"]:.4f}; {throughput:,.0f} images/s',
    file=sys.stderr,
  )
  return {
    **values,
    'split': split,
    'crops': crops,
    'images_per_second': throughput,
    'examples': count,
    'unreadable': len(loader.unreadable),
    'step': step,
    'parameters': state_lib.num_parameters(run.state),
    'state_digest': state_lib.state_digest(state_lib.saved_tree(run.state)),
  }


def _compile(run, loader, crops):
  """Compiles the evaluation, so that only measuring is timed."""
  import jax
  import numpy as np

  from alexnet_jax.training import build

  count = build.eval_batch_size(run.config, run.mesh)
  size = loader.resize_size if crops > 1 else run.config.data.crop_size
  batch = {
    'image': np.zeros((count, size, size, 3), np.uint8),
    'label': np.zeros(count, np.int32),
    'mask': np.zeros(count, bool),
  }
  if loader.skips:
    batch['unreadable'] = np.zeros(count, bool)
  jax.block_until_ready(run.steps.evaluate(run.state, run.to_devices(batch)))


if __name__ == '__main__':
  sys.exit(main())
