"""Measures a saved run.

python -m alexnet_jax.evaluation.evaluate --workdir DIR [--crops 10]
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import itertools
import sys
import time

from alexnet_jax import cli, files

CROPS = {1: 'the center crop', 10: 'ten crops'}
_LINE_SECONDS = 30.0  # between two lines of progress without a terminal


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('evaluation.evaluate', 'Measures a saved run.')
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
  return cli.run_parsed(
    parser, argv, lambda arguments: evaluate(**vars(arguments))
  )


def measure_all(
  run,
  loader,
  crops: int = 1,
  on_batch: Callable[[dict], None] = lambda batch: None,
):
  """Measures a `loading.Network` on all examples of a loader: `Measured`.

  `crops` are those of the network's steps; `on_batch` is called with each host
  batch before it is dispatched, and may raise.
  """
  from alexnet_jax.training import measure

  made = host_batches(run, loader, crops, on_batch)
  with contextlib.closing(made) as batches:
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
  subset: bool = False  # see `loading.open_subset`
  per_example: str = ''  # CSV that gets a row for each example


def evaluate(workdir: str, checkpoint: str = 'final', **options) -> dict:
  """Measures a checkpoint on a split: the command's result, which it prints.

  See `loading.load_network` and `Options`. Raises UserError if the run or the
  data is not there, or does not fit.
  """
  given = Options(**options)
  if given.per_example:
    files.check_new_file('--per_example', given.per_example)
  from alexnet_jax.evaluation import loading
  from alexnet_jax.training import state as state_lib

  split, crops = given.split, given.crops
  data = {'data_path': given.data_path, 'data_source': given.data_source}
  run = loading.load_network(workdir, checkpoint, crops=crops, **data)
  result = state_lib.summarize(run.state)
  if given.subset:
    run, loader = loading.open_subset(run, split)
  else:
    loader = loading.make_eval_loader(run, split)
  loading.warn_of_crops(run, crops)
  _compile(run, loader, crops)
  begun = time.perf_counter()
  measured = measure_all(run, loader, crops)
  values, found = measured.values, measured.predictions
  count = int(found.counts.sum())
  throughput = count / (time.perf_counter() - begun)
  print(
    f'{workdir}, step {result["step"]}, {split} ({count:,} examples,'
    f' {CROPS[crops]}): loss {values["eval/loss"]:.4f}, top-1'
    f' {values["eval/top1"]:.4f}, top-5 {values["eval/top5"]:.4f};'
    f' {throughput:,.0f} images/s',
    file=sys.stderr,
  )
  if given.per_example:
    _write_examples(given.per_example, run.class_names, loader.source, found)
  return {
    **values,
    **result,
    'split': split,
    'crops': crops,
    'classes': len(run.class_names),
    'images_per_second': throughput,
    'examples': count,
    'unreadable': len(found.counts) - count,
  }


def best_classes(class_names: Sequence[str], found) -> Iterator[list]:
  """Yields [(class, probability), ...] of each of `measure.Predictions`.

  The best come first; of an example that was not read there are none.
  """
  parts = found.counts, found.classes, found.probabilities
  for is_there, *best in zip(*parts, strict=True):
    pairs = zip(*best, strict=True) if is_there else ()
    yield [(class_names[i], float(p)) for i, p in pairs]


def write_answers(
  path: str, count: int, answers: Iterable[list], ends: Iterable[tuple]
) -> None:
  """Writes the answers of `best_classes`, `count` classes each, as CSV.

  `ends` are the cells (before, after) of the header and of each example.
  """
  ranks = range(1, count + 1)
  header = [(f'class_{rank}', f'probability_{rank}') for rank in ranks]
  every = itertools.chain([header], answers)
  rows = (
    [*before, *itertools.chain(*(best or [('', '')] * count)), *after]
    for best, (before, after) in zip(every, ends, strict=True)
  )
  # A name of a file may be any bytes; they are written as they are.
  files.write_csv(path, rows, errors='surrogateescape')


def _write_examples(path, class_names, source, found):
  def ends():
    yield ('name', 'label'), ('loss',)
    parts = zip(found.counts, found.labels, found.loss, strict=True)
    for index, (is_there, label, loss) in enumerate(parts):
      own = (class_names[label], float(loss)) if is_there else ('', '')
      yield (source.describe(index), own[0]), own[1:]

  answers = best_classes(class_names, found)
  write_answers(path, found.classes.shape[1], answers, ends())


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
