"""Measures a saved run.

python -m alexnet_jax.evaluation.evaluate --workdir DIR [--crops 10]
"""

import argparse
from collections.abc import Callable
import itertools
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
  options = vars(arguments)
  json_output = options.pop('json')
  return cli.run(lambda: evaluate(**options), json_output=json_output)


def measure_all(
  run,
  loader,
  crops: int = 1,
  on_batch: Callable[[dict], None] = lambda batch: None,
):
  """Measures a network on all examples of a loader, behind a progress bar.

  Args:
    run: a `measure.Network`.
    loader: of the examples.
    crops: 1 or 10, as of the network's steps.
    on_batch: called with each host batch before it is dispatched; may raise.

  Returns:
    See `measure.evaluate`.
  """
  from alexnet_jax.training import build
  from alexnet_jax.training import measure

  count, console = loader.source.num_examples, cli.Console()
  batch_size = build.eval_batch_size(run.config, run.mesh)

  def batches():
    made = build.make_eval_iter(run.config, loader, run.mesh, crops)
    for number, batch in enumerate(made, 1):
      on_batch(batch)
      console.advance(min(count, number * batch_size))
      yield batch

  console.start(count, 0, 'image', 'evaluation', _LINE_SECONDS)
  try:
    return measure.evaluate(
      run.steps.evaluate,
      run.state,
      batches(),
      run.to_devices,
      num_examples=count,
    )
  finally:
    console.stop()


def evaluate(
  workdir: str,
  checkpoint: str = 'final',
  data_path: str = '',
  split: str = 'validation',
  crops: int = 1,
) -> dict:
  """Measures a checkpoint on a split, and prints what comes out.

  Args:
    workdir, checkpoint, data_path: see `measure.load_network`.
    split: `validation`, `train`, or a split of TFDS.
    crops: 1 or 10.

  Returns:
    The command's result: the measures, and what was measured.

  Raises:
    UserError: if the run or the data is not there, or does not fit.
  """
  from alexnet_jax.training import measure
  from alexnet_jax.training import state as state_lib

  run = measure.load_network(workdir, checkpoint, data_path, crops=crops)
  loader = measure.make_eval_loader(run, split)
  measure.warn_of_crops(run, crops)
  _compile(run, loader, crops)
  begun = time.perf_counter()
  measured = measure_all(run, loader, crops)
  values, counts = measured.values, measured.predictions.counts
  count = int(counts.sum())
  throughput = count / (time.perf_counter() - begun)
  step = int(run.state.step)
  print(
    f'{workdir}, step {step}, {split} ({count:,} examples, {CROPS[crops]}):'
    f' loss {values["eval/loss"]:.4f}, top-1 {values["eval/top1"]:.4f},'
    f' top-5 {values["eval/top5"]:.4f}; {throughput:,.0f} images/s',
    file=sys.stderr,
  )
  return {
    **values,
    **state_lib.summarize(run.state),
    'split': split,
    'crops': crops,
    'images_per_second': throughput,
    'examples': count,
    'unreadable': len(counts) - count,
  }


def _compile(run, loader, crops):
  """Compiles the evaluation, so that only measuring is timed."""
  import jax

  from alexnet_jax.training import build

  config = run.config.copy_and_resolve_references()
  config.data.prefetch = 0  # one batch is read, and none ahead
  made = build.make_eval_iter(config, loader, run.mesh, crops)
  for batch in itertools.islice(made, 1):  # there may be none
    jax.block_until_ready(run.steps.evaluate(run.state, run.to_devices(batch)))


if __name__ == '__main__':
  sys.exit(main())
