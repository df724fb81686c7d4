"""The command `prepare check`: finds what is wrong with a data set."""

import collections
import dataclasses
import pathlib
import warnings

from alexnet_jax import cli
from alexnet_jax.data import raw
from alexnet_jax.data import tfds_records
from alexnet_jax.data.folder import list_files
from alexnet_jax.data.loader import num_cores
from alexnet_jax.data.prepare import contents
from alexnet_jax.data.prepare import shards
from alexnet_jax.errors import UserError

_MAX_EXAMPLES = 5  # names that a finding keeps
_MAX_DETAIL = 500  # characters of what a decoder or the system says

_FETCH = 'fetch or write them again'
_PREPARE = 'prepare the set again'
_FIX = (
  'repair, replace or delete them; training goes on without them with'
  ' --config.data.unreadable=skip'
)
# What it is, and what to do, by severity and kind. An error stops the training
# or makes it wrong. A note is what training gets right; its detail says what.
_TEXTS = {
  'error': {
    'refused': 'training refuses it',
    'single_image': 'classes have a single image, which cannot be both trained'
    ' on and held out; add images',
    'spelled_twice': 'classes have one name in two spellings of Unicode; join'
    ' them',
    'splits_in_a_class': 'classes hold folders named like splits; is this one'
    ' level too high? give the folder that has train/ and val/',
    'missing_file': f'files are missing; {_FETCH}',
    'damaged_file': f'files of the set are damaged or cut off; {_FETCH}',
    'checksum': f'files have another SHA-256 than the manifest; {_PREPARE}',
    'wrong_count': 'there are fewer or more than there should be; look for a'
    ' download or a preparation that was cut short',
    'no_classes': 'folders have no subfolders; put the images into one'
    ' subfolder per class',
    'one_class': 'there is one class only, training needs two; is this the'
    ' folder above the classes?',
    'empty_class': 'class folders hold no images; fill them or delete them',
    'class_only_in_validation': 'classes of the validation that training lacks;'
    ' rename or remove them',
    'empty_file': f'files are empty; {_FIX}',
    'truncated': f'images are cut off; {_FIX}',
    'unreadable': f'images cannot be read or decoded; {_FIX}',
    'label_out_of_range': f'labels are no class of the set; {_PREPARE}',
    'duplicate_between_splits': 'images are in two splits, which spoils the'
    ' validation; delete them from one of the two',
  },
  'warning': {
    'duplicate': 'images are copies of others of their split; delete the'
    ' copies: where a part is held out, it may get some of them',
    'duplicate_with_two_labels': 'images lie in two classes at once; decide for'
    ' one',
    'damaged_jpeg': 'JPEGs are damaged inside; they decode, perhaps with wrong'
    ' parts: look at them',
    'one_pixel': 'images have a side of one pixel; look at them: crops of them'
    ' are stripes',
    'unused_class': 'classes have no training images; the network will never'
    ' predict them',
    'class_not_in_validation': 'classes of training have no validation images;'
    ' their accuracy is not measured',
    'unknown_suffix': 'images are left out, as files of their suffix are not'
    ' read; convert them, or rename what is JPEG, PNG, GIF, WebP, BMP or TIFF',
    'loose_image': 'images lie beside the class folders and are left out; move'
    ' them into a class, or away',
  },
  'note': {'note': ''},
}
KINDS = {
  kind: (severity, text)
  for severity, texts in _TEXTS.items()
  for kind, text in texts.items()
}


@dataclasses.dataclass
class Finding:
  """What was found, and where.

  Attributes:
    severity: error, warning or note.
    kind: a key of KINDS.
    text: what it is and what to do, with the detail of the first.
    count: of the images, files or classes.
    examples: names of the first ones.
  """

  severity: str
  kind: str
  text: str
  count: int = 0
  examples: list[str] = dataclasses.field(default_factory=list)


class Findings:
  """What was found so far: a row for each kind, and for each kind of note."""

  def __init__(self):
    self._rows = {}  # by kind, and detail of a note
    self._first = {}  # of equal images the (name, split, label), by digest

  def add(self, kind: str, name: str, detail: str = '') -> None:
    """Adds a finding; only the detail of the first of a kind is kept."""
    severity, text = KINDS[kind]
    key = kind, detail if kind == 'note' else ''
    if key not in self._rows:
      first = f' (the first: {detail[:_MAX_DETAIL]})' if detail else ''
      text = detail if kind == 'note' else text + first
      self._rows[key] = Finding(severity, kind, text)
    row = self._rows[key]
    row.count += 1
    if len(row.examples) < _MAX_EXAMPLES:
      row.examples.append(name)

  def compare(self, outcome: contents.Outcome) -> None:
    """Adds an image's equality to one before.

    Takes about 300 bytes an image, 400 MB for ImageNet.
    """
    image = outcome.name, outcome.split, outcome.label
    name, split, label = self._first.setdefault(outcome.digest, image)
    if name == outcome.name and split == outcome.split:
      return
    same = 'duplicate' if split == outcome.split else 'duplicate_between_splits'
    pair = f'{outcome.name} = {name}'
    self.add(same, pair)
    if None not in (label, outcome.label) and label != outcome.label:
      self.add('duplicate_with_two_labels', pair)

  def rows(self) -> list[Finding]:
    """Returns the findings, in the order of KINDS."""
    order = list(KINDS)
    return sorted(self._rows.values(), key=lambda row: order.index(row.kind))


def check(path: str, name: str = '', num_threads: int = 0) -> dict:
  """Examines every image of a data set and reports what it found.

  Args:
    path: a folder of images, tar or parquet shards, a raw set, the data_dir of
      TFDS or the folder of ImageNet's tars.
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
  findings = Findings()
  labels = collections.defaultdict(collections.Counter)  # of each split
  with (
    shards.progress(opened.total, 'examining') as add_done,
    warnings.catch_warnings(action='ignore'),  # of Pillow, about odd images
  ):
    for outcome in shards.run_in_order(opened.jobs, num_threads or num_cores()):
      _record(outcome, len(opened.class_names), findings, labels)
      add_done(outcome.split is not None)
  if opened.kind not in ('folder', 'tars'):
    for label, class_name in enumerate(opened.class_names):
      if not labels['train'][label]:
        findings.add('unused_class', class_name)
  result = _result(path, opened.kind, labels, findings.rows())
  _print(result)
  return result


def _open(root, name):
  if not root.is_dir():
    raise UserError(f'no folder at {str(root)!r}; give that of the data set')
  if not name and raw.is_raw_set(root):
    return contents.open_raw(root)
  if not name and any((root / tar).is_file() for tar in contents.TARS):
    return contents.open_tars(root)
  if folder := _tfds_folder(root, name):
    return contents.open_tfds(folder)
  if list_files(root).paths:
    return contents.open_folder(root)
  for kind in ('tar', 'parquet'):
    if list_files(root, (f'.{kind}',)).paths:
      return contents.open_shards(kind, root)
  raise UserError(
    f'{str(root)!r} is no data set of a known kind: neither a folder of images,'
    f' nor tar or parquet shards, nor a raw set ({raw.MANIFEST}), nor the'
    f" data_dir of a TFDS set, nor the folder of ImageNet's tars"
    f' ({", ".join(contents.TARS)})'
  )


def _tfds_folder(root, name):
  """Returns the folder of a set's newest version; None if there is no set."""
  if name:
    return tfds_records.tfds_folder(name, str(root))
  sets = tfds_records.find_sets(root)
  if len(sets) > 1:
    names = [str(folder.parent.relative_to(root)) for folder in sets]
    raise UserError(
      f'{root} has several TFDS sets; choose one with --name:'
      f' {", ".join(names)}'
    )
  return sets[0] if sets else None


def _record(outcome, num_classes, findings, labels):
  for kind, detail in outcome.found:
    findings.add(kind, outcome.name, detail)
  if outcome.split is None:
    return
  labels[outcome.split][outcome.label] += 1
  if outcome.label is not None and not 0 <= outcome.label < num_classes:
    detail = f'{outcome.label} of {num_classes} classes'
    findings.add('label_out_of_range', outcome.name, detail)
  if outcome.digest:
    findings.compare(outcome)


def _result(path, kind, labels, findings):
  return {
    'path': str(path),
    'kind': kind,
    'splits': {
      split: {
        'examples': counts.total(),
        'classes': len(counts.keys() - {None}) or None,
      }
      for split, counts in labels.items()
      if counts
    },
    'findings': [dataclasses.asdict(finding) for finding in findings],
    **{
      f'{severity}s': sum(f.count for f in findings if f.severity == severity)
      for severity in _TEXTS
    },
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
    for s in _TEXTS
  )
  verdict = 'fit for training'
  if result['errors']:
    verdict = 'training would stop or be wrong'
  elif result['warnings']:
    verdict += '; look at the warnings'
  console.line(f'{result["path"]}: {sums}: {verdict}')
