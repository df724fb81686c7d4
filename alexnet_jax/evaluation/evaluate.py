"""Measures a saved run.

python -m alexnet_jax.evaluation.evaluate --workdir DIR [--crops 10]
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import sys
import time

from alexnet_jax import cli
from alexnet_jax import files

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
  cli.add_data_source(parser)
  text = 'the data has some of the classes, of the same names; only those that'
  text += ' it has are predicted (default: all, and others are refused)'
  parser.add_argument('--subset', action='store_true', help=text)
  text = 'writes a table: each example, its class, the five best, the loss'
  parser.add_argument(
    '--per_example', default='', type=cli.path, metavar='FILE.csv', help=text
  )
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
    run: a `loading.Network`.
    loader: of the examples.
    crops: 1 or 10, as of the network's steps.
    on_batch: called with each host batch before it is dispatched; may raise.

  Returns:
    See `measure.evaluate`.
  """
  from alexnet_jax.training import measure

  with contextlib.closing(
    host_batches(run, loader, crops, on_batch)
  ) as batches:
    return measure.evaluate(
      run.steps.evaluate,
      run.state,
      batches,
      run.to_devices,
      num_examples=loader.source.num_examples,
    )


def host_batches(
  run,
  loader,
  crops: int = 1,
  on_batch: Callable[[dict], None] = lambda batch: None,
) -> Iterator[dict]:
  """Yields the batches of all examples in order, behind a progress bar."""
  from alexnet_jax.training import build

  count, console = loader.source.num_examples, cli.Console()
  batch_size = build.eval_batch_size(run.config, run.mesh)
  console.start(count, 0, 'image', 'evaluation', _LINE_SECONDS)
  try:
    made = build.make_eval_iter(run.config, loader, run.mesh, crops)
    for number, batch in enumerate(made, 1):
      on_batch(batch)
      console.advance(min(count, number * batch_size))
      yield batch
  finally:
    console.stop()


@dataclasses.dataclass(frozen=True)
class Options:
  """Choices of the data, and of how it is measured."""

  data_path: str = ''  # see `loading.load_network`
  data_source: str = ''
  split: str = 'validation'  # or train, or a split of TFDS
  crops: int = 1  # or 10
  # Whether only the classes of the examples are predicted, see
  # `loading.open_subset`; else they must be those of the network.
  subset: bool = False
  per_example: str = ''  # CSV that gets a row for each example


def evaluate(workdir: str, checkpoint: str = 'final', **options) -> dict:
  """Measures a checkpoint on a split, and prints what comes out.

  Args:
    workdir, checkpoint: see `loading.load_network`.
    **options: see `Options`.

  Returns:
    The command's result: the measures, and what was measured.

  Raises:
    UserError: if the run or the data is not there, or does not fit.
  """
  given = Options(**options)
  if given.per_example:
    files.check_new_file('--per_example', given.per_example)
  from alexnet_jax.evaluation import loading
  from alexnet_jax.training import state as state_lib

  split, crops = given.split, given.crops
  run = loading.load_network(
    workdir,
    checkpoint,
    given.data_path,
    crops=crops,
    data_source=given.data_source,
  )
  result = state_lib.summarize(run.state)
  if given.subset:
    run, loader = loading.open_subset(run, split)
  else:
    loader = loading.make_eval_loader(run, split)
  loading.warn_of_crops(run, crops)
  _compile(run, loader, crops)
  begun = time.perf_counter()
  measured = measure_all(run, loader, crops)
  values, counts = measured.values, measured.predictions.counts
  count = int(counts.sum())
  throughput = count / (time.perf_counter() - begun)
  print(
    f'{workdir}, step {result["step"]}, {split} ({count:,} examples,'
    f' {CROPS[crops]}): loss {values["eval/loss"]:.4f}, top-1'
    f' {values["eval/top1"]:.4f}, top-5 {values["eval/top5"]:.4f};'
    f' {throughput:,.0f} images/s',
    file=sys.stderr,
  )
  if given.per_example:
    rows = _example_rows(run, loader.source, measured.predictions)
    # A name of a file may be any bytes; they are written as they are.
    files.write_csv(given.per_example, rows, errors='surrogateescape')
  return {
    **values,
    **result,
    'split': split,
    'crops': crops,
    'classes': len(run.class_names),
    'images_per_second': throughput,
    'examples': count,
    'unreadable': len(counts) - count,
  }


def _example_rows(run, source, found):
  """Yields a row for each example; of those not read it has the name only."""
  names, count = run.class_names, found.classes.shape[1]
  ranks = range(1, count + 1)
  best = [(f'class_{rank}', f'probability_{rank}') for rank in ranks]
  yield ['name', 'label', *itertools.chain(*best), 'loss']
  for index in range(source.num_examples):
    row = [source.describe(index)]
    if found.counts[index]:
      parts = zip(found.classes[index], found.probabilities[index], strict=True)
      best = [(names[number], float(p)) for number, p in parts]
      row += [names[found.labels[index]], *itertools.chain(*best)]
      row.append(float(found.loss[index]))
    yield row + [''] * (2 * count + 3 - len(row))


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
