"""What `prepare check` can find, and the collection of what it found."""

import dataclasses

SEVERITIES = ('error', 'warning', 'note')
_MAX_EXAMPLES = 5  # names that a finding keeps
_MAX_DETAIL = 200  # characters of what a decoder or the system says

_PREPARE = 'prepare the set again'
_MEND = (
  'mend, replace or delete them; training goes on without them with'
  ' --config.data.unreadable=skip'
)
# kind: (severity, what it is, what to do). An error stops the training or makes
# it wrong; what the decoders get right is a note.
KINDS = {
  'missing_file': ('error', 'files are missing', 'fetch or write them again'),
  'damaged_file': (
    'error',
    'tars, shards or descriptions are damaged or cut off',
    'fetch or write them again',
  ),
  'checksum': (
    'error',
    'files do not have the SHA-256 that the manifest gives',
    'something changed them since they were written: ' + _PREPARE,
  ),
  'wrong_count': (
    'error',
    'there are fewer or more than there should be',
    'look for a download or a preparation that was cut short',
  ),
  'wrong_sums': (
    'error',
    "the colors' sums, mean or covariance in the manifest are wrong",
    _PREPARE,
  ),
  'no_classes': (
    'error',
    'folders have no subfolders',
    'put the images into one subfolder per class',
  ),
  'one_class': (
    'error',
    'there is one class only',
    'training needs two; is this the folder above the classes?',
  ),
  'empty_class': (
    'error',
    'class folders hold no images',
    'fill them or take them away',
  ),
  'splits_in_a_class': (
    'warning',
    'classes hold folders named like splits',
    'is this one level too high? give the folder that has train/ and val/',
  ),
  'class_only_in_validation': (
    'error',
    'classes of the validation that training lacks',
    'rename or remove them; training refuses them',
  ),
  'empty_file': ('error', 'files are empty', _MEND),
  'truncated': ('error', 'images are cut off', _MEND),
  'unreadable': ('error', 'images cannot be read or decoded', _MEND),
  'label_out_of_range': (
    'error',
    'labels are no class of the set',
    _PREPARE,
  ),
  'duplicate_between_splits': (
    'error',
    'images are in two splits, which spoils the validation',
    'delete them from one of the two',
  ),
  'duplicate': (
    'warning',
    'images are copies of others of their split',
    'delete the copies; where a part is held out, it may get some of them',
  ),
  'duplicate_with_two_labels': (
    'warning',
    'images lie in two classes at once',
    'decide for one',
  ),
  'damaged_jpeg': (
    'warning',
    'JPEGs are damaged inside; they decode, perhaps with wrong parts',
    'look at them',
  ),
  'one_pixel': (
    'warning',
    'images have a side of one pixel',
    'look at them: crops of them are stripes',
  ),
  'unused_class': (
    'warning',
    'classes have no training images',
    'the network will never predict them',
  ),
  'class_not_in_validation': (
    'warning',
    'classes of training have no validation images',
    'their accuracy is not measured',
  ),
  'unknown_suffix': (
    'warning',
    'images are left out for their file name',
    'rename them to end in .jpg, .png, ... if they belong to the set',
  ),
  'loose_image': (
    'warning',
    'images lie beside the class folders and are left out',
    'move them into a class, or away',
  ),
  'unused_folder': (
    'note',
    'folders beside train and val, which training does not read',
    '',
  ),
  'not_an_image': ('note', 'other files lie among the images', 'left out'),
  'skipped': ('note', 'images were left out when the set was written', ''),
  'unlabeled': (
    'note',
    'test images have no label',
    'do not evaluate on them',
  ),
  'wrong_suffix': (
    'note',
    'images are of another format than their name says',
    'read by what they are',
  ),
  'small': ('note', 'images have a side under 32 pixels', 'enlarged'),
  'cmyk': ('note', 'images are CMYK or YCCK', 'converted to RGB'),
  'grayscale': ('note', 'images are gray', 'read as RGB of equal channels'),
  'alpha': ('note', 'images are transparent', 'the transparency is left out'),
  'palette': ('note', 'images have a palette', 'converted to RGB'),
  'deep': ('note', 'images have 16 bits per channel', 'cut to 8'),
  'exif_rotation': ('note', 'images are turned by EXIF', 'turned upright'),
  'animated': ('note', 'images have several frames', 'the first is read'),
}


@dataclasses.dataclass
class _Finding:
  count: int = 0
  examples: list[str] = dataclasses.field(default_factory=list)
  detail: str = ''


class Findings:
  """Counts of what was found, with the first names of each kind."""

  def __init__(self):
    self._found = {}

  def add(self, kind: str, name: str, detail: str = '', count: int = 1) -> None:
    """Adds `count` findings of one of KINDS.

    Args:
      kind: a key of KINDS.
      name: of the file, the image or the class.
      detail: what is said about it; the first one of a kind is kept.
      count: how many.
    """
    found = self._found.setdefault(kind, _Finding())
    found.count += count
    if len(found.examples) < _MAX_EXAMPLES:
      found.examples.append(name)
    found.detail = found.detail or detail[:_MAX_DETAIL]

  def as_list(self) -> list[dict]:
    """[{severity, kind, count, examples, text}], errors first."""
    return [
      {
        'severity': severity,
        'kind': kind,
        'count': self._found[kind].count,
        'examples': list(self._found[kind].examples),
        'text': self._text(kind),
      }
      for wanted in SEVERITIES
      for kind, (severity, _, _) in KINDS.items()
      if severity == wanted and kind in self._found
    ]

  def _text(self, kind):
    _, what, advice = KINDS[kind]
    detail = self._found[kind].detail
    said = f' (the first: {detail})' if detail else ''
    return f'{what}{said}; {advice}' if advice else f'{what}{said}'
