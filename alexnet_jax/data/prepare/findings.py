"""Findings of `prepare check`, and how they are counted."""

import collections
import dataclasses
import hashlib

SEVERITIES = ('error', 'warning', 'note')
_MAX_EXAMPLES = 5  # names that a finding keeps
_MAX_DETAIL = 200  # characters of what a decoder or the system says
_DIGEST_BYTES = 16  # two of 1.3 million differ with probability 1 - 1e-26

_FETCH = 'fetch or write them again'
_PREPARE = 'prepare the set again'
_FIX = (
  'repair, replace or delete them; training goes on without them with'
  ' --config.data.unreadable=skip'
)
# kind: (what it is, what to do). An error stops the training or makes it wrong.
_ERRORS = {
  'missing_file': ('files are missing', _FETCH),
  'damaged_file': (
    'tars, shards or descriptions are damaged or cut off',
    _FETCH,
  ),
  'checksum': (
    'files do not have the SHA-256 that the manifest gives',
    f'something changed them since they were written: {_PREPARE}',
  ),
  'wrong_count': (
    'there are fewer or more than there should be',
    'look for a download or a preparation that was cut short',
  ),
  'no_classes': (
    'folders have no subfolders',
    'put the images into one subfolder per class',
  ),
  'one_class': (
    'there is one class only',
    'training needs two; is this the folder above the classes?',
  ),
  'empty_class': ('class folders hold no images', 'fill them or delete them'),
  'class_only_in_validation': (
    'classes of the validation that training lacks',
    'rename or remove them; training refuses them',
  ),
  'empty_file': ('files are empty', _FIX),
  'truncated': ('images are cut off', _FIX),
  'unreadable': ('images cannot be read or decoded', _FIX),
  'label_out_of_range': ('labels are no class of the set', _PREPARE),
  'duplicate_between_splits': (
    'images are in two splits, which spoils the validation',
    'delete them from one of the two',
  ),
}
_WARNINGS = {
  'splits_in_a_class': (
    'classes hold folders named like splits',
    'is this one level too high? give the folder that has train/ and val/',
  ),
  'duplicate': (
    'images are copies of others of their split',
    'delete the copies; where a part is held out, it may get some of them',
  ),
  'duplicate_with_two_labels': (
    'images lie in two classes at once',
    'decide for one',
  ),
  'damaged_jpeg': (
    'JPEGs are damaged inside; they decode, perhaps with wrong parts',
    'look at them',
  ),
  'one_pixel': (
    'images have a side of one pixel',
    'look at them: crops of them are stripes',
  ),
  'unused_class': (
    'classes have no training images',
    'the network will never predict them',
  ),
  'class_not_in_validation': (
    'classes of training have no validation images',
    'their accuracy is not measured',
  ),
  'unknown_suffix': (
    'images are left out for their file name',
    'rename them to end in .jpg, .png, ... if they belong to the set',
  ),
  'loose_image': (
    'images lie beside the class folders and are left out',
    'move them into a class, or away',
  ),
}
# What training gets right by itself; the details say what it is.
_NOTES = {'note': ('training copes with these', '')}
KINDS = {
  kind: (severity, *texts)
  for severity, kinds in zip(
    SEVERITIES, (_ERRORS, _WARNINGS, _NOTES), strict=True
  )
  for kind, texts in kinds.items()
}


@dataclasses.dataclass
class Outcome:
  """Result of the examination of one image.

  Attributes:
    split: of the image; None for what is no image, such as a whole file.
    name: of the image or file.
    label: None if it is not known.
    found: pairs of a kind of KINDS and a detail.
    digest: see `digest`; empty if it could not be read.
  """

  split: str | None
  name: str
  label: int | None = None
  found: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  digest: bytes = b''


@dataclasses.dataclass
class Tally:
  """The examples of a split.

  Attributes:
    examples: how many.
    labels: how many of each known label.
  """

  examples: int = 0
  labels: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )

  def add(self, outcome: Outcome) -> None:
    """Adds an example."""
    self.examples += 1
    if outcome.label is not None:
      self.labels[outcome.label] += 1

  def as_dict(self) -> dict:
    """Returns {examples, classes}; classes is None if no label is known."""
    return {'examples': self.examples, 'classes': len(self.labels) or None}


@dataclasses.dataclass
class _Finding:
  examples: list[str] = dataclasses.field(default_factory=list)
  details: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )


class Findings:
  """Counts of what was found, with the first names of each kind."""

  def __init__(self):
    self._found = collections.defaultdict(_Finding)

  def add(self, kind: str, name: str, detail: str = '') -> None:
    """Adds a finding.

    Args:
      kind: a key of KINDS.
      name: of the file, the image or the class.
      detail: more about it. Of errors and warnings the first one is shown; of
        notes all, with their numbers.
    """
    found = self._found[kind]
    if len(found.examples) < _MAX_EXAMPLES:
      found.examples.append(name)
    if kind not in _NOTES:  # each may say something else: keep one
      detail = next((d for d in found.details if d), detail[:_MAX_DETAIL])
    found.details[detail] += 1

  def add_count(self, what: str, count: int, expected: int) -> None:
    """Adds a finding if two numbers differ."""
    if count != expected:
      self.add('wrong_count', f'{what}: {count:,}, not {expected:,}')

  def add_unused_classes(self, class_names: list[str], tally: Tally) -> None:
    """Adds the classes without a training image."""
    for label, name in enumerate(class_names):
      if not tally.labels[label]:
        self.add('unused_class', name)

  def as_list(self) -> list[dict]:
    """Returns [{severity, kind, count, examples, text}], errors first."""
    return [
      {
        'severity': severity,
        'kind': kind,
        'count': self._found[kind].details.total(),
        'examples': list(self._found[kind].examples),
        'text': self._text(kind),
      }
      for kind, (severity, _, _) in KINDS.items()
      if kind in self._found
    ]

  def _text(self, kind):
    _, what, advice = KINDS[kind]
    details = self._found[kind].details
    if kind in _NOTES:
      counted = (f'{n:,} {detail}' for detail, n in sorted(details.items()))
      return f'{what}: {", ".join(counted)}'
    detail = next(filter(None, details), '')
    first = f' (the first: {detail})' if detail else ''
    return f'{what}{first}; {advice}'


def digest(content: bytes | memoryview) -> bytes:
  """Returns 16 bytes that stand for the content."""
  return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


class DuplicateIndex:
  """Finds equal images; about 300 bytes an image, 400 MB for ImageNet."""

  def __init__(self):
    self._first = {}  # digest: (name, split, label)
    self._copies = {}  # digest: those of the others

  def add(self, outcome: Outcome) -> None:
    """Adds an image that has a digest and a split."""
    image = outcome.name, outcome.split, outcome.label
    if self._first.setdefault(outcome.digest, image) is not image:
      self._copies.setdefault(outcome.digest, []).append(image)

  def report(self, findings: Findings) -> None:
    """Adds what is there more than once to the findings."""
    for key, first in self._first.items():
      if key in self._copies:
        self._report_group([first, *self._copies[key]], findings)

  def _report_group(self, group, findings):
    firsts = {}  # of each split: the name
    for name, split, _ in group:
      other = firsts.setdefault(split, name)
      if other is not name:
        findings.add('duplicate', f'{name} = {other}')
    for name in list(firsts.values())[1:]:
      findings.add('duplicate_between_splits', f'{name} = {group[0][0]}')
    known = [(name, label) for name, _, label in group if label is not None]
    for name, label in known[1:]:
      if label != known[0][1]:
        pair = f'{name} = {known[0][0]}'
        findings.add('duplicate_with_two_labels', pair)
        break
