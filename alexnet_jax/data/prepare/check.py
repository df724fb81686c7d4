"""prepare check: what is wrong with a data set, before days of training."""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import json
import os
import pathlib
import re
import sys
import warnings

import rich.console
import rich.markup
import rich.table

from alexnet_jax import errors
from alexnet_jax.data import raw
from alexnet_jax.data.loader import num_cores
from alexnet_jax.data.prepare import contents
from alexnet_jax.data.prepare import inputs
from alexnet_jax.data.prepare import set_contents
from alexnet_jax.data.prepare.diagnosis import Outcome
from alexnet_jax.data.prepare.duplicates import DuplicateIndex
from alexnet_jax.data.prepare.findings import Findings
from alexnet_jax.data.prepare.findings import SEVERITIES
from alexnet_jax.data.prepare.progress import Progress
from alexnet_jax.data.prepare.tallies import Tally
from alexnet_jax.errors import UserError

_TFDS_INFO = 'dataset_info.json'
_WIDTH = 100  # of the table, in characters, where there is no terminal
_STYLES = {'error': 'red', 'warning': 'yellow', 'note': 'dim'}


def check(path: str, name: str = '', num_threads: int = 0) -> dict:
  """Examines every image of a data set and says what it found.

  Args:
    path: a folder of images, a raw set, the data_dir of TFDS or the folder of
      ImageNet's tars.
    name: of the TFDS set, where data_dir has several.
    num_threads: 0: one per core.

  Returns:
    {path, kind, splits: {name: {examples, classes}}, findings: [{severity,
    kind, count, examples (up to 5 names), text}], errors, warnings, notes}; the
    last three are the sums of the counts.

  Raises:
    UserError: if there is nothing at `path`, or no data set.
  """
  contents = _open(pathlib.Path(path).expanduser(), name)
  findings, index = Findings(), DuplicateIndex()
  tallies = collections.defaultdict(Tally)
  with (
    Progress(contents.total, 'examining') as progress,
    warnings.catch_warnings(action='ignore'),  # of Pillow, about odd images
  ):
    for outcome in _run(contents.jobs(findings), num_threads or num_cores()):
      _record(outcome, len(contents.class_names), findings, tallies, index)
      progress.advance(outcome.split is not None)
  contents.finish(dict(tallies), findings)
  index.report(findings)
  result = _result(path, contents.kind, tallies, findings)
  _print(result)
  return result


def _open(root, name):
  """The contents of the data set at `root`, as `files` describes them."""
  if not root.is_dir():
    raise UserError(f'no folder at {str(root)!r}; give that of the data set')
  if not name and (root / raw.MANIFEST).is_file():
    return set_contents.RawContents(root)
  if not name and any((root / tar).is_file() for tar in contents.TARS):
    return contents.TarContents(root)
  if (folder := _tfds_folder(root, name)) is not None:
    return set_contents.TfdsContents(folder)
  if not _holds_images(root):
    raise UserError(
      f'{str(root)!r} is no data set of a known kind: neither a folder of'
      f' images, nor a raw set ({raw.MANIFEST}), nor the data_dir of a TFDS'
      f" set, nor the folder of ImageNet's tars ({', '.join(contents.TARS)})"
    )
  return contents.FolderContents(root)


def _tfds_folder(root, name):
  """The folder of the newest version of the set; None if there is no set."""
  found = collections.defaultdict(list)
  # From VERSION/ up to the folder of NAME/CONFIG/VERSION.
  for depth in range(4):
    for path in root.glob('*/' * depth + _TFDS_INFO):
      # Not incomplete.ABC_1.0.0, which a build leaves that was killed.
      if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name):
        found[_tfds_name(path)].append(path.parent)
  if name:
    found = {k: v for k, v in found.items() if name in (k, k.split('/')[0])}
    if not found:
      raise UserError(f'no TFDS set {name!r} in {root}')
  if len(found) > 1:
    raise UserError(
      f'{root} has several TFDS sets; choose one with --name:'
      f' {", ".join(sorted(found))}'
    )
  folders = [folder for folders in found.values() for folder in folders]
  return max(
    folders, key=lambda f: [int(n) for n in f.name.split('.')], default=None
  )


def _tfds_name(path):
  """NAME or NAME/CONFIG."""
  try:
    info = json.loads(path.read_text())
    config = info.get('configName')
    return f'{info["name"]}/{config}' if config else info['name']
  except (OSError, ValueError, KeyError, AttributeError) as error:
    raise UserError(
      f'{path} is damaged ({error}); prepare the set again'
    ) from error


def _holds_images(root):
  return any(
    contents.is_image_name(name)
    for _, _, names in os.walk(root)
    for name in names
  )


def _run(
  jobs: Iterable[Callable[[], Outcome]], num_threads: int
) -> Iterator[Outcome]:
  """Runs the jobs in threads; yields their outcomes in order.

  Few jobs wait at a time, for those of tars hold their images.
  """
  waiting = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    for job in jobs:
      waiting.append(pool.submit(job))
      if len(waiting) > 4 * num_threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def _record(outcome, num_classes, findings, tallies, index):
  for kind, detail in outcome.found:
    findings.add(kind, outcome.name, detail)
  if outcome.split is None:
    return
  tallies[outcome.split].add(outcome)
  if outcome.label is not None and not 0 <= outcome.label < num_classes:
    detail = f'{outcome.label} of {num_classes} classes'
    findings.add('label_out_of_range', outcome.name, detail)
  if outcome.digest:
    index.add(outcome.digest, outcome.name, outcome.split, outcome.label)


def _result(path, kind, tallies, findings):
  found = findings.as_list()
  sums = {
    f'{severity}s': sum(f['count'] for f in found if f['severity'] == severity)
    for severity in SEVERITIES
  }
  return {
    'path': str(path),
    'kind': kind,
    'splits': {split: tally.as_dict() for split, tally in tallies.items()},
    'findings': found,
    **sums,
  }


def _print(result):
  width = None if sys.stderr.isatty() else _WIDTH
  console = rich.console.Console(stderr=True, width=width, highlight=False)
  if result['findings']:
    console.print(_table(result['findings']))
  for split, counts in result['splits'].items():
    classes = counts['classes']
    of_classes = f' of {classes:,} classes' if classes else ''
    console.print(f'{split}: {counts["examples"]:,} images{of_classes}')
  sums = ', '.join(
    f'{(count := result[f"{s}s"]):,} {s}{"" if count == 1 else "s"}'
    for s in SEVERITIES
  )
  if result['errors']:
    verdict = '[red]training would stop or be wrong[/red]'
  elif result['warnings']:
    verdict = '[yellow]fit for training; look at the warnings[/yellow]'
  else:
    verdict = '[green]fit for training[/green]'
  path = rich.markup.escape(result['path'])
  console.print(f'{path}: {sums}: {verdict}', soft_wrap=True)


def _table(found):
  table = rich.table.Table(show_lines=True)
  table.add_column('')
  table.add_column('count', justify='right')
  table.add_column('what, and what to do')
  table.add_column('the first', overflow='fold')
  for finding in found:
    severity = finding['severity']
    names = list(finding['examples'])
    if finding['count'] > len(names):
      names.append('...')
    table.add_row(
      f'[{_STYLES[severity]}]{severity}',
      f'{finding["count"]:,}',
      rich.markup.escape(finding['text']),
      rich.markup.escape('\n'.join(names)),
    )
  return table


def exit_code(result: dict) -> int:
  """What the command's process ends with."""
  return errors.EXIT_USER if result['errors'] else errors.EXIT_DONE


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'check',
    help='look for what is wrong with a data set',
    description='Examines every image of a data set: damaged or odd files,'
    ' duplicates, missing files, wrong counts, checksums. Ends with exit code 2'
    ' if training would stop or be wrong. Changes nothing.',
  )
  parser.add_argument(
    'path',
    metavar='PATH',
    help='a folder of images, a raw set, a data_dir of TFDS or the folder of'
    " ImageNet's tars",
  )
  parser.add_argument(
    '--name',
    default='',
    help='of the TFDS set, NAME or NAME/CONFIG, where PATH has several',
  )
  parser.add_argument(
    '--num_threads',
    type=inputs.not_negative,
    default=0,
    help='0: one per core (default)',
  )
  parser.set_defaults(
    work=lambda a: check(a.path, a.name, a.num_threads), exit_code=exit_code
  )
