"""The statistics and the table of `bench marvin`."""

import math
import statistics
import sys

CONTENDERS = ('ours', 'keras')
_NOTE = (
  'Seconds an epoch are medians of all epochs but the first, of training alone.'
  ' An epoch of Keras ends with a smaller batch; ours goes on into the next'
  ' epoch.'
)


def summary(runs: list[dict]) -> dict:
  """What the runs say together; None where there are too few of them.

  Args:
    runs: of `marvin.measure`.

  Returns:
    ours, keras: {accuracy: of each seed, mean, standard_error: of the mean,
    epoch_seconds: the median of each seed, median_epoch_seconds: of these};
    difference: of the means, ours less Keras'; difference_error: its standard
    error; within_one_standard_error: whether the difference is no larger;
    epoch_seconds_ratio: Keras' time by ours, the median over the seeds.
  """
  result = {name: _of_contender(runs, name) for name in CONTENDERS}
  ours, keras = (result[name] for name in CONTENDERS)
  difference, error, within = ours['mean'] - keras['mean'], None, None
  if ours['standard_error'] is not None:
    error = math.hypot(ours['standard_error'], keras['standard_error'])
    within = abs(difference) <= error
  ratio = None
  if ours['median_epoch_seconds'] is not None:
    pairs = zip(keras['epoch_seconds'], ours['epoch_seconds'], strict=True)
    ratio = statistics.median(theirs / own for theirs, own in pairs)
  return {
    **result,
    'difference': difference,
    'difference_error': error,
    'within_one_standard_error': within,
    'epoch_seconds_ratio': ratio,
  }


def _of_contender(runs, name):
  own = [run for run in runs if run['contender'] == name]
  accuracy = [run['accuracy'] for run in own]
  error = None
  if len(own) > 1:
    error = statistics.stdev(accuracy) / math.sqrt(len(own))
  seconds = [
    statistics.median(run['epoch_seconds'])
    for run in own
    if run['epoch_seconds']  # not of a single epoch
  ]
  return {
    'accuracy': accuracy,
    'mean': statistics.mean(accuracy),
    'standard_error': error,
    'epoch_seconds': seconds,
    'median_epoch_seconds': statistics.median(seconds) if seconds else None,
  }


def line(run: dict) -> str:
  """One run, for people."""
  seconds = ''
  if run['epoch_seconds']:
    seconds = f', {statistics.median(run["epoch_seconds"]):.2f} s an epoch'
  return (
    f'seed {run["seed"]}, {run["contender"]}: {run["accuracy"]:.4f} of the'
    f' digits held out{seconds}'
  )


def show(result: dict) -> None:
  """Prints the result of the command for people, on standard error."""
  from rich.console import Console
  from rich.table import Table

  console = Console(
    file=sys.stderr, width=100, highlight=False, markup=False, emoji=False
  )
  machine, versions = result['machine'], result['versions']
  console.print(
    f'{machine["cpu"]}, {machine["cores"]} cores; {result["epochs"]} epochs;'
    f' jax {versions["jax"]}, keras {versions["keras"]}, tensorflow'
    f' {versions["tensorflow"]}'
  )
  table = Table('', 'accuracy of each seed', 'mean', 'seconds an epoch')
  for name in CONTENDERS:
    own = result[name]
    error, seconds = own['standard_error'], own['median_epoch_seconds']
    table.add_row(
      name,
      ' '.join(f'{value:.3f}' for value in own['accuracy']),
      f'{own["mean"]:.4f}' + ('' if error is None else f' ± {error:.4f}'),
      '-' if seconds is None else f'{seconds:.2f}',
    )
  console.print(table)
  if result['difference_error'] is not None:
    console.print(
      f'difference {result["difference"]:+.4f} ±'
      f' {result["difference_error"]:.4f}, which is'
      f' {"within" if result["within_one_standard_error"] else "more than"} one'
      ' standard error'
    )
  if result['epoch_seconds_ratio'] is not None:
    console.print(
      f'Keras takes {result["epoch_seconds_ratio"]:.2f} times as long as ours'
      ' (median over the seeds)'
    )
  console.print(_NOTE)
