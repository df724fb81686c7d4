"""The command `prepare check`: finds what is wrong with a data set.

It opens both splits as training does. An error is what training stops at, with
the options that the last line names; all else that should not be is a warning.
"""

import collections
import functools
import hashlib
import io
import itertools
import os
import pathlib
import shlex
from typing import NamedTuple

from alexnet_jax import cli
from alexnet_jax.data import (
  decoding,
  folder,
  imagenet,
  raw,
  sources,
  tfds_records,
)
from alexnet_jax.data.loader import num_cores
from alexnet_jax.data.prepare import shards, tfds
from alexnet_jax.errors import UnreadableImageError, UserError

_MAX_EXAMPLES = 5  # names that a finding keeps
_MAX_DETAIL = 500  # characters of what a decoder or the system says
_DIGEST_BYTES = 16  # two of 1.3 million differ with probability 1 - 1e-26
_TARS = imagenet.TRAIN_TAR, imagenet.VALIDATION_TAR
_IMAGENET = {'train': 1_281_167, 'validation': imagenet.NUM_VALIDATION}
_PNG_DEPTH_AT = 24  # offset of the bits per channel in a PNG
_TIFF_DEPTH = 258  # tag of the bits per channel
_HARMLESS = folder.OTHER_FILES, folder.BESIDE  # to leave out
# What it is, and what to do, by severity and kind. A note is what training gets
# right.
_TEXTS = {
  'error': {
    'refused': '',  # what is found says all
    'damaged_file': 'files are damaged or cut off; fetch or write them again',
    'unreadable': 'images cannot be read or decoded; repair or delete them, or'
    ' train with --config.data.unreadable=skip',
    'label_out_of_range': 'labels are no class of the set (-1: a split without'
    ' labels); prepare it again, or train and measure on other splits',
  },
  'warning': {
    'wrong_count': 'there are fewer or more than there should be; look for a'
    ' download or a preparation that was cut short',
    'checksum': 'files are not those of the manifest; prepare the set again',
    'two_labels': 'images are copies of others with another label; delete the'
    ' wrong ones',
    'duplicate_between_splits': 'images are in two splits, which spoils the'
    ' validation; delete them from one of the two',
    'duplicate': 'images are copies of others of a split; delete the copies',
    'damaged_jpeg': 'JPEGs are damaged inside, with perhaps wrong parts; look',
    'left_out': 'are left out',
  },
  'note': {
    'deep': 'images of 16 bits per channel are cut to 8',
    'unused_split': 'splits are not read by training',
    'not_examined': 'splits are not examined, as training refuses them',
    'not_read': 'are left out',
    'skipped': 'images were left out when the set was written',
  },
}
_SEVERITIES = {kind: name for name, kinds in _TEXTS.items() for kind in kinds}


class _Outcome(NamedTuple):
  """Result of the examination of one image, or of a file."""

  name: str
  found: list[tuple[str, str]]  # kinds of findings, and details
  split: str = ''  # of an image; '' for what is none
  label: int | None = None  # None if it is not known
  class_name: str = ''  # two may have the same; '' if the label is no class
  digest: bytes = b''  # stands for the content; empty if it cannot be read


class _Findings:
  """The findings so far: a row for each kind."""

  def __init__(self, root):
    self._below = os.path.join(root, '')
    self.rows = {}  # by kind, and what is left out
    # (name, split, label, class name) of the first of equal images, by digest:
    # about 300 bytes an image, 400 MB for ImageNet.
    self._first = {}
    self.labels = collections.defaultdict(collections.Counter)  # by split

  def add(self, kind, name, detail='', what=''):
    """Adds a finding; only the detail of the first of a kind is kept."""
    severity = _SEVERITIES[kind]
    text = _TEXTS[severity][kind]
    first = f' (the first: {detail[:_MAX_DETAIL]})' if detail else ''
    row = {'severity': severity, 'kind': kind}
    row |= {'text': f'{what} {text}{first}'.strip(), 'count': 0, 'examples': []}
    row = self.rows.setdefault((kind, what), row)
    row['count'] += 1
    if len(row['examples']) < _MAX_EXAMPLES:
      row['examples'].append(name.replace(self._below, ''))

  def record(self, outcome):
    """Adds what was found in an image or file, and copies of others."""
    name, found, split, label, class_name, digest = outcome
    for kind, detail in found:
      self.add(kind, name, detail)
    if split:
      self.labels[split][label] += 1
    if not digest:
      return
    own = name, split, label, class_name
    other, its_split, its_label, its_class = self._first.setdefault(digest, own)
    differ = class_name and its_class and label != its_label
    if differ:
      self.add('two_labels', f'{name} ({class_name}) = {other} ({its_class})')
    if split != its_split:
      self.add('duplicate_between_splits', f'{name} = {other}')
    elif other != name and not differ:
      self.add('duplicate', f'{name} = {other}')


def check(path: str, source: str = '', num_threads: int = 0) -> dict:
  """Examines every image of a data set and reports what it found.

  Args:
    path: a folder of images, tar or parquet shards, a raw set, the data_dir of
      TFDS or a folder of one of its sets, or the folder of ImageNet's tars.
    source: one of `sources.KINDS`; '': that which most files belong to.
    num_threads: 0: one per core.

  Returns:
    {path, kind, splits: {name: {examples, classes}}, keys (of config.data, with
    which training takes it), findings: [{severity, kind, count, examples (up to
    5 names), text}], errors, warnings, notes}; the last three are the sums of
    the counts.

  Raises UserError if there is no data set at `path`, or its description is
  damaged.
  """
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise UserError(f'no folder at {str(root)!r}; give that of the data set')
  kind, findings = source or _kind(root), _Findings(root)
  opened, keys = _open(kind, root, findings)
  total = sum(source.num_examples for source in opened.values())
  sums = _check_sums(root, findings) if kind == 'raw' else ()
  examinations = (
    functools.partial(_examine, source, index, split)
    for split, source in opened.items()
    for index in range(source.num_examples)
  )
  jobs = itertools.chain(sums, examinations)
  with shards.progress(total, 'examining') as add_done:
    for outcome in shards.run_in_order(jobs, num_threads or num_cores()):
      findings.record(outcome)
      add_done(outcome.split != '')
  rows = sorted(
    findings.rows.values(), key=lambda row: [*_TEXTS].index(row['severity'])
  )
  result = {
    'path': str(path),
    'kind': kind,
    'splits': {
      split: {
        'examples': counts.total(),
        'classes': len(counts.keys() - {None}) or None,
      }
      for split, counts in findings.labels.items()
    },
    'keys': keys,
    'findings': rows,
    **{
      f'{severity}s': sum(r['count'] for r in rows if r['severity'] == severity)
      for severity in _TEXTS
    },
  }
  _print(result)
  return result


def _kind(root):
  """Returns the kind of data set that most files of a folder belong to."""
  sets = tfds_records.find_sets(root)
  if any(any(path.glob('*.array_record-*')) for path in sets):
    return 'tfds'  # its data_dir may have many other files
  counts = collections.Counter()
  if raw.is_raw_set(root):
    counts['raw'] = len([*root.glob('*.npy')])
  kinds = {'.tar': 'tar', '.parquet': 'parquet'}
  tars = {str(root / tar) for tar in _TARS}
  for path in folder.list_files(root, (*kinds, *folder.IMAGE_SUFFIXES)).paths:
    kind = kinds.get(os.path.splitext(path)[1].lower(), 'folder')
    counts['imagenet' if path in tars else kind] += 1
  if counts:  # of as many files, shards hold more
    return max(counts, key=lambda kind: (counts[kind], kind != 'folder'))
  if sets:
    return 'tfds'
  # Of a raw set; of `resize`, below the set's name and version.
  depths = ('', '*/*/', '*/*/*/')
  if any(any(root.glob(f'{below}{shards.NOTES}')) for below in depths):
    raise UserError(
      f'{root} is not finished; the command that prepares it goes on'
    )
  raise UserError(
    f'{str(root)!r} is no data set of a known kind: images in folders, tar or'
    f' parquet shards, a raw set ({raw.MANIFEST}), the data_dir of a TFDS set,'
    f" or the folder of ImageNet's tars ({', '.join(_TARS)})"
  )


def _open(kind, root, findings):
  """Returns ({split: source}, keys of config.data), opened as by training."""
  options = {split: {'path': str(root)} for split in sources.SPLITS}
  keys, is_imagenet = {'path': str(root)}, kind == 'imagenet'
  if kind == 'tfds':
    described = _tfds_set(root)
    is_imagenet = described.name == 'imagenet2012'
    keys = tfds.split_keys(described.num_examples)
    options = _tfds_options(described.folder, keys)
    path, name = options['train']['path'], options['train']['tfds_name']
    named = {} if name == 'imagenet2012' else {'tfds_name': name}
    keys = {'path': path, **named, **keys}
    read = {o['tfds_split'].partition('[')[0] for o in options.values()}
    for split in sorted(described.num_examples.keys() - read):
      findings.add('unused_split', split)
  opened, refused = {}, collections.defaultdict(list)
  for split, own in options.items():
    try:
      source = opened[split] = sources.make_source(kind, split, **own)
    except UserError as error:
      refused[str(error)].append(split)
      findings.add('not_examined', split)
      continue
    classes, examples = len(source.class_names), source.num_examples
    if classes < 2:
      refused['it has one class; two are needed'].append(split)
    if is_imagenet and (classes, examples) != (1_000, _IMAGENET[split]):
      found = f'{split}: {examples:,} images of {classes:,} classes'
      findings.add('wrong_count', f'{found}, not {_IMAGENET[split]:,} of 1,000')
  for reason, names in refused.items():
    what = f'training refuses it: {reason[:_MAX_DETAIL]}'
    findings.add('refused', ', '.join(names), what=what)
  left_out = (getattr(source, 'left_out', ()) for source in opened.values())
  for path, what in dict.fromkeys(itertools.chain(*left_out)):
    is_harmless = what in _HARMLESS
    findings.add('not_read' if is_harmless else 'left_out', path, what=what)
  return opened, {'source': kind, **keys}


def _tfds_set(root):
  """Returns the description of the only TFDS set in a folder."""
  sets = tfds_records.find_sets(root)
  if len(sets) == 1:
    return tfds_records.read_description(sets[0].resolve())
  names = ', '.join(str(path.parent.relative_to(root)) for path in sets)
  problem = f'has several TFDS sets ({names})' if sets else 'has no TFDS set'
  raise UserError(f'{root} {problem}; give the folder of one')


def _tfds_options(folder, keys):
  """Returns {split: arguments of make_source} of a TFDS set."""
  options = {'path': str(folder.parents[1]), 'tfds_name': folder.parent.name}
  named = {
    'train': keys.get('tfds_train_split', 'train'),
    'validation': keys.get('tfds_eval_split', 'validation'),
  }
  return {split: {**options, 'tfds_split': own} for split, own in named.items()}


def _check_sums(root, findings):
  """Yields jobs that compare the files of a raw set with its manifest."""
  infos = raw.read_manifest(root)['splits']
  for info in (infos[split] for split in sources.SPLITS if split in infos):
    for name in info['skipped']:
      findings.add('skipped', name)
    for entry in [info['labels'], *info['shards']]:
      yield functools.partial(_check_sum, root / entry['file'], entry['sha256'])


def _check_sum(path, expected):
  try:
    with path.open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except (OSError, ValueError):  # training refuses the set
    found = expected
  return _Outcome(str(path), [('checksum', '')] if found != expected else [])


def _examine(source, index, split):
  try:
    content, label = source.read(index)
  except UserError as error:
    if isinstance(error, UnreadableImageError):
      found, name = [('unreadable', str(error))], source.describe(index)
    else:  # a damaged record has no name
      found, name = [('damaged_file', str(error))], f'{source.name} {index}'
    return _Outcome(name, found, split)
  found = examine(content) if isinstance(content, bytes) else []
  class_name = ''
  if 0 <= label < (count := len(source.class_names)):
    class_name = source.class_names[label]
  else:
    found.append(('label_out_of_range', f'{label} of {count} classes'))
  digest = b''
  if len(content):
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
  name = source.describe(index)
  return _Outcome(name, found, split, label, class_name, digest)


def examine(encoded: bytes) -> list[tuple[str, str]]:
  """Decodes an image file as training does.

  Returns pairs of a kind of finding and a detail; of an image that cannot be
  decoded, one that says why.
  """
  found = []
  try:
    # A small size: all data is read, but few pixels are computed.
    decoding.decode(
      encoded,
      min_size=1,
      damaged=lambda message: found.append(('damaged_jpeg', message)),
    )
  except UnreadableImageError as error:
    return [('unreadable', str(error))]
  return [*found, ('deep', '')] if _is_deep(encoded) else found


def _is_deep(encoded):
  try:
    with decoding.open_image(io.BytesIO(encoded)) as image:
      depths = [encoded[_PNG_DEPTH_AT]] if image.format == 'PNG' else [8]
      if image.format == 'TIFF':
        depths = image.tag_v2.get(_TIFF_DEPTH, (8,))
      return image.mode.startswith('I') or max(depths) > 8
  except Exception:  # Pillow may stumble where the other decoder did not
    return False


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
  keys = (f'--config.data.{k}={v}' for k, v in result['keys'].items())
  training = f'training with {shlex.join(keys)}'
  verdict = f'fit for {training}'
  if result['errors']:
    verdict = f'{training} would stop at the errors'
  if result['warnings']:
    verdict += '; look at the warnings'
  console.line(f'{result["path"]}: {sums}: {verdict}')
