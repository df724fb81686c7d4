"""The command `prepare check`: finds what is wrong with a data set.

An error is what training stops at, with the options that the last line names;
all else that should not be is a warning.
"""

import collections
import pathlib

from alexnet_jax import cli
from alexnet_jax.data.loader import num_cores
from alexnet_jax.data.prepare import contents, shards

_MAX_EXAMPLES = 5  # names that a finding keeps
_MAX_DETAIL = 500  # characters of what a decoder or the system says
_REFUSED = 'training refuses it'  # where the detail says all

_FIX = 'repair or delete them, or train with --config.data.unreadable=skip'
# What it is, and what to do, by severity and kind. Kinds that are not here are
# errors that `folder.find_problems` names. A note is what training gets right;
# its detail says what.
_TEXTS = {
  'error': {
    'damaged_file': 'files are damaged or cut off; fetch or write them again',
    'empty_file': f'files are empty; {_FIX}',
    'truncated': f'images are cut off; {_FIX}',
    'unreadable': f'images cannot be read or decoded; {_FIX}',
    'label_out_of_range': 'labels are no class of the set (-1: a split without'
    ' labels); prepare it again, or train and measure on other splits',
  },
  'warning': {
    'wrong_count': 'there are fewer or more than there should be; look for a'
    ' download or a preparation that was cut short',
    'checksum': 'files are not those of the manifest; prepare the set again',
    'duplicate_between_splits': 'images are in two splits, which spoils the'
    ' validation; delete them from one of the two',
    'duplicate': 'images are copies of others of a split; delete the copies',
    'duplicate_with_two_labels': 'images lie in two classes; decide for one',
    'damaged_jpeg': 'JPEGs are damaged inside, with perhaps wrong parts; look',
    'one_pixel': 'images have a side of one pixel: crops of them are stripes',
    'unused_class': 'classes have no training images',
    'class_not_in_validation': 'classes of training have no validation images',
    'unknown_suffix': 'images are left out, as files of their suffix are not'
    ' read; convert them, or rename what is JPEG, PNG, GIF, WebP, BMP or TIFF',
    'loose_image': 'images lie beside the class folders and are left out',
  },
  'note': {'note': ''},
}
_KINDS = {
  kind: (severity, text)
  for severity, texts in _TEXTS.items()
  for kind, text in texts.items()
}


class _Findings:
  """The findings so far: a row for each kind, and for each kind of note."""

  def __init__(self, num_classes):
    self._num_classes = num_classes
    self._rows = {}  # by kind, and detail of a note
    # Of equal images the (name, split, label), by digest: about 300 bytes an
    # image, 400 MB for ImageNet.
    self._first = {}
    self.labels = collections.defaultdict(collections.Counter)  # by split

  def add(self, kind, name, detail=''):
    """Adds a finding; only the detail of the first of a kind is kept."""
    severity, text = _KINDS.get(kind, ('error', _REFUSED))
    first = f' (the first: {detail[:_MAX_DETAIL]})' if detail else ''
    key, text = (kind, text + first) if kind != 'note' else (detail, detail)
    row = {'severity': severity, 'kind': kind, 'text': text}
    row = self._rows.setdefault(key, row | {'count': 0, 'examples': []})
    row['count'] += 1
    if len(row['examples']) < _MAX_EXAMPLES:
      row['examples'].append(name)

  def record(self, outcome: contents.Outcome):
    """Adds what was found in an image or file, and copies of others."""
    name, split, label = image = outcome.name, outcome.split, outcome.label
    for kind, detail in outcome.found:
      self.add(kind, name, detail)
    if split is None:
      return
    self.labels[split][label] += 1
    if label is not None and not 0 <= label < self._num_classes:
      detail = f'{label} of {self._num_classes} classes'
      self.add('label_out_of_range', name, detail)
    if not outcome.digest:
      return
    other, its_split, its_label = self._first.setdefault(outcome.digest, image)
    if (other, its_split) != (name, split):
      pair = f'{name} = {other}'
      between = '' if split == its_split else '_between_splits'
      self.add(f'duplicate{between}', pair)
      if None not in (label, its_label) and label != its_label:
        self.add('duplicate_with_two_labels', pair)

  def rows(self):
    """Returns the findings, errors first."""
    order = list(_TEXTS)
    return sorted(
      self._rows.values(), key=lambda row: order.index(row['severity'])
    )


def check(path: str, name: str = '', num_threads: int = 0) -> dict:
  """Examines every image of a data set and reports what it found.

  Args:
    path: a folder of images, tar or parquet shards, a raw set, the data_dir of
      TFDS or the folder of ImageNet's tars.
    name: of the TFDS set, where data_dir has several.
    num_threads: 0: one per core.

  Returns:
    {path, kind, splits: {name: {examples, classes}}, keys (of config.data, with
    which training takes it), findings: [{severity, kind, count, examples (up to
    5 names), text}], errors, warnings, notes}; the last three are the sums of
    the counts.

  Raises UserError if there is no data set at `path`.
  """
  opened = contents.open_set(pathlib.Path(path).expanduser(), name)
  findings = _Findings(len(opened.class_names))
  with shards.progress(opened.total, 'examining') as add_done:
    for outcome in shards.run_in_order(opened.jobs, num_threads or num_cores()):
      findings.record(outcome)
      add_done(outcome.split is not None)
  labels = findings.labels
  if opened.kind != 'folder' and labels['train']:
    for label, class_name in enumerate(opened.class_names):
      if not labels['train'][label]:
        findings.add('unused_class', class_name)
  rows = findings.rows()
  result = {
    'path': str(path),
    'kind': opened.kind,
    'splits': {
      split: {
        'examples': counts.total(),
        'classes': len(counts.keys() - {None}) or None,
      }
      for split, counts in labels.items()
      if counts
    },
    'keys': opened.keys,
    'findings': rows,
    **{
      f'{severity}s': sum(r['count'] for r in rows if r['severity'] == severity)
      for severity in _TEXTS
    },
  }
  _print(result)
  return result


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
  keys = [f'--config.data.{k}={v}' for k, v in result['keys'].items()]
  training = f'training with {" ".join(keys)}' if keys else 'training'
  verdict = f'fit for {training}'
  if result['errors']:
    verdict = f'{training} would stop at the errors'
  if result['warnings']:
    verdict += '; look at the warnings'
  console.line(f'{result["path"]}: {sums}: {verdict}')
