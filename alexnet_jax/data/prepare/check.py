"""The command `prepare check`: finds what is wrong with a data set."""

import collections
import concurrent.futures
import pathlib
import warnings

from alexnet_jax import cli
from alexnet_jax import errors
from alexnet_jax.data import raw
from alexnet_jax.data import tfds_records
from alexnet_jax.data.folder import is_image_name
from alexnet_jax.data.folder import list_files
from alexnet_jax.data.loader import num_cores
from alexnet_jax.data.prepare import contents
from alexnet_jax.data.prepare import inputs
from alexnet_jax.data.prepare.findings import DuplicateIndex
from alexnet_jax.data.prepare.findings import Findings
from alexnet_jax.data.prepare.findings import SEVERITIES
from alexnet_jax.data.prepare.findings import Tally
from alexnet_jax.errors import UserError


def check(path: str, name: str = '', num_threads: int = 0) -> dict:
  """Examines every image of a data set and reports what it found.

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
  opened = _open(pathlib.Path(path).expanduser(), name)
  findings, index = Findings(), DuplicateIndex()
  tallies = collections.defaultdict(Tally)
  num_threads = num_threads or num_cores()
  with (
    concurrent.futures.ThreadPoolExecutor(num_threads) as pool,
    inputs.progress(opened.total, 'examining') as add_done,
    warnings.catch_warnings(action='ignore'),  # of Pillow, about odd images
  ):
    for outcome in inputs.run_in_order(
      opened.jobs(findings), pool, num_threads
    ):
      _record(outcome, len(opened.class_names), findings, tallies, index)
      add_done(outcome.split is not None)
  opened.finish(dict(tallies), findings)
  index.report(findings)
  result = _result(path, opened.kind, tallies, findings)
  _print(result)
  return result


def _open(root, name):
  """Returns the contents of the data set at `root`; see `contents`."""
  if not root.is_dir():
    raise UserError(f'no folder at {str(root)!r}; give that of the data set')
  if not name and (root / raw.MANIFEST).is_file():
    return contents.RawContents(root)
  if not name and any((root / tar).is_file() for tar in contents.TARS):
    return contents.TarContents(root)
  if (folder := _tfds_folder(root, name)) is not None:
    return contents.TfdsContents(folder)
  if not any(map(is_image_name, list_files(root))):
    raise UserError(
      f'{str(root)!r} is no data set of a known kind: neither a folder of'
      f' images, nor a raw set ({raw.MANIFEST}), nor the data_dir of a TFDS'
      f" set, nor the folder of ImageNet's tars ({', '.join(contents.TARS)})"
    )
  return contents.FolderContents(root)


def _tfds_folder(root, name):
  """Returns the folder of a set's newest version; None if there is no set."""
  sets = {}  # by NAME or NAME/CONFIG
  for folder in tfds_records.find_sets(root):
    below = folder.relative_to(root).parent.as_posix()
    own = folder.resolve().parent.name  # if `root` is that of the set itself
    sets[own if below == '.' else below] = folder
  if name:
    sets = {k: v for k, v in sets.items() if name in (k, k.split('/')[0])}
    if not sets:
      raise UserError(f'no TFDS set {name!r} in {root}')
  if len(sets) > 1:
    raise UserError(
      f'{root} has several TFDS sets; choose one with --name:'
      f' {", ".join(sorted(sets))}'
    )
  return next(iter(sets.values()), None)


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
    index.add(outcome)


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
  console = cli.Console()
  for finding in result['findings']:
    names, count = finding['examples'], finding['count']
    more = ['...'] if count > len(names) else []
    console.line(f'{finding["severity"]} ({count:,}): {finding["text"]}')
    for name in [*names, *more]:
      console.line(f'    {name}')
  for split, counts in result['splits'].items():
    classes = counts['classes']
    of_classes = f' of {classes:,} classes' if classes else ''
    console.line(f'{split}: {counts["examples"]:,} images{of_classes}')
  sums = ', '.join(
    f'{(count := result[f"{s}s"]):,} {s}{"" if count == 1 else "s"}'
    for s in SEVERITIES
  )
  verdict = 'fit for training'
  if result['errors']:
    verdict = 'training would stop or be wrong'
  elif result['warnings']:
    verdict += '; look at the warnings'
  console.line(f'{result["path"]}: {sums}: {verdict}')


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
  inputs.add_num_threads(parser)
  parser.set_defaults(
    work=lambda a: check(a.path, a.name, a.num_threads),
    exit_code=lambda result: (
      errors.EXIT_USER if result['errors'] else errors.EXIT_DONE
    ),
  )
