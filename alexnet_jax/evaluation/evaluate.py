"""Measures a saved run.

python -m alexnet_jax.evaluation.evaluate --workdir DIR [--crops 10]
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterable
import sys
import time

from alexnet_jax import cli

CROPS = {1: 'the center crop', 10: 'ten crops'}
_LINE_SECONDS = 30.0  # between two lines of progress without a terminal


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.evaluate',
    description='Measures a saved run.',
  )
  cli.add_split(parser)
  cli.add_crops(parser)
  cli.add_run(parser)
  cli.add_data_path(parser)
  cli.add_json(parser)
  arguments = parser.parse_args(argv)
  return cli.run(lambda: _evaluate(arguments), json_output=arguments.json)


def measure_all(
  run,
  loader,
  batches: Iterable[dict],
  batch_size: int,
  progress: Callable[[int], None] = lambda done: None,
):
  """Measures a network on all examples, behind a progress bar.

  Args:
    run: a `measure.Network`.
    loader: of the examples.
    batches: of the loader, see `build.make_eval_iter`.
    batch_size: of a batch.
    progress: called with the number of batches dispatched; may raise.

  Returns:
    See `measure.evaluate`.
  """
  from alexnet_jax.training import measure

  count, console = loader.source.num_examples, cli.Console()

  def advance(done):
    console.advance(min(count, done * batch_size))
    progress(done)

  console.start(count, 0, 'image', 'evaluation', _LINE_SECONDS)
  try:
    return measure.evaluate(
      run.steps.evaluate,
      run.state,
      batches,
      run.to_devices,
      advance,
      count,
    )
  finally:
    console.stop()


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
  batch_size = build.eval_batch_size(run.config, run.mesh)
  _compile(run, loader, crops, batch_size)
  begun = time.perf_counter()
  batches = build.make_eval_iter(run.config, loader, run.mesh, crops)
  values = measure_all(run, loader, batches, batch_size).values
  step = int(run.state.step)
  count = loader.source.num_examples - len(loader.unreadable)
  throughput = count / (time.perf_counter() - begun)
  print(
    f'{workdir}, step {step}, {split} ({count:,} examples, {CROPS[crops]}):'
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


def _compile(run, loader, crops, batch_size):
  """Compiles the evaluation, so that only measuring is timed."""
  import jax
  import numpy as np

  size = loader.resize_size if crops > 1 else run.config.data.crop_size
  batch = {
    'image': np.zeros((batch_size, size, size, 3), np.uint8),
    'label': np.zeros(batch_size, np.int32),
    'mask': np.zeros(batch_size, bool),
  }
  if loader.skips:
    batch['unreadable'] = np.zeros(batch_size, bool)
  jax.block_until_ready(run.steps.evaluate(run.state, run.to_devices(batch)))


if __name__ == '__main__':
  sys.exit(main())
