"""What `prepare check` looks at in files: folders of images, ImageNet's tars.

Both have

- `kind`, `class_names`, `total`: images to expect, for the progress;
- `jobs(findings)`: functions of no arguments that examine one image each and
  return an Outcome. They may run in any thread; what is found on the way to
  them is added to the findings;
- `finish(tallies, findings)`, once all have run.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import os
import pathlib
import tarfile

from alexnet_jax.data.folder import IMAGE_SUFFIXES
from alexnet_jax.data.folder import subfolders
from alexnet_jax.data.folder import VALIDATION_FOLDERS
from alexnet_jax.data.prepare import diagnosis
from alexnet_jax.data.prepare.diagnosis import Outcome
from alexnet_jax.data.prepare.duplicates import digest
from alexnet_jax.data.prepare.findings import Findings
from alexnet_jax.data.prepare.tallies import report_count
from alexnet_jax.data.prepare.tfds_set import TRAIN_TAR
from alexnet_jax.data.prepare.tfds_set import VALIDATION_TAR

TARS = {TRAIN_TAR: 'train', VALIDATION_TAR: 'validation'}
IMAGENET_IMAGES = {'train': 1_281_167, 'validation': 50_000}
IMAGENET_CLASSES = 1_000
_BLOCK = 512  # bytes, of a tar


def examine_file(
  encoded: bytes, split: str, name: str, label: int | None
) -> Outcome:
  """The Outcome of one encoded image."""
  found = diagnosis.examine(encoded, name)
  key = digest(encoded) if encoded else b''
  return Outcome(split, name, label, found, key)


class FolderContents:
  """Images in subfolders named by class, in as bad a state as may be."""

  kind = 'folder'

  def __init__(self, root: pathlib.Path):
    self._root = root
    self._splits = _split_folders(root)
    self.class_names = subfolders(next(iter(self._splits.values())))
    self.total = sum(
      is_image_name(path)
      for split in self._splits
      for _, folder in self._classes(split)
      for path in _files(folder)
    )

  def jobs(self, findings: Findings) -> Iterator[Callable[[], Outcome]]:
    self._report_layout(findings)
    for split in self._splits:
      for class_name, folder in self._classes(split):
        count = 0
        for path in _files(folder):
          if is_image_name(path):
            count += 1
            yield functools.partial(self._examine, path, split, class_name)
          else:
            image = diagnosis.is_image(path)
            kind = 'unknown_suffix' if image else 'not_an_image'
            findings.add(kind, self._name(path))
        if class_name is not None and not count:
          findings.add('empty_class', self._name(folder))

  def finish(self, tallies: dict, findings: Findings) -> None:
    del tallies, findings  # nothing says how many there should be

  def _classes(self, split):
    """(class name, folder) of a split; (None, itself) if it has no classes."""
    folder = self._splits[split]
    names = subfolders(folder)
    return [(name, folder / name) for name in names] or [(None, folder)]

  def _examine(self, path, split, class_name):
    known = class_name in self.class_names
    label = self.class_names.index(class_name) if known else None
    try:
      content = pathlib.Path(path).read_bytes()
    except OSError as error:
      found = [('unreadable', error.strerror)]
      return Outcome(split, self._name(path), label, found)
    return examine_file(content, split, self._name(path), label)

  def _report_layout(self, findings):
    for folder in self._splits.values():
      if not subfolders(folder):
        findings.add('no_classes', self._name(folder))
        continue
      for path in _files(folder, deep=False):
        if is_image_name(path):
          findings.add('loose_image', self._name(path))
      for name in subfolders(folder):
        if {'train', *VALIDATION_FOLDERS} & set(subfolders(folder / name)):
          findings.add('splits_in_a_class', self._name(folder / name))
    if len(self.class_names) == 1:
      findings.add('one_class', self.class_names[0])
    if 'validation' in self._splits:
      found = subfolders(self._splits['validation'])
      for name in sorted(set(found) - set(self.class_names)):
        findings.add('class_only_in_validation', name)
      for name in sorted(set(self.class_names) - set(found)):
        findings.add('class_not_in_validation', name)
    if self._root not in self._splits.values():
      used = {folder.name for folder in self._splits.values()}
      for name in sorted(set(subfolders(self._root)) - used):
        findings.add('unused_folder', name)

  def _name(self, path):
    name = os.path.relpath(path, self._root)
    return str(self._root) if name == os.curdir else name


def _split_folders(root):
  """{split: folder}, as data.folder takes them; `all` is divided later."""
  train = root / 'train'
  validation = next(
    (root / n for n in VALIDATION_FOLDERS if (root / n).is_dir()), None
  )
  if train.is_dir() and validation:
    return {'train': train, 'validation': validation}
  if train.is_dir() and subfolders(train):
    return {'all': train}
  return {'all': root}


def _files(folder, deep=True):
  """Paths of the files in or below a folder, in order, hidden ones left out."""
  for place, folders, names in os.walk(folder):
    folders.sort()
    for name in sorted(names):
      if name[0] != '.':
        yield os.path.join(place, name)
    if not deep:
      return


def is_image_name(path: str) -> bool:
  """Whether training would take a file for an image."""
  return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


class TarContents:
  """ImageNet's two tars: of a tar a synset, and of the validation images.

  They are read from front to back, in one thread, and never unpacked.
  """

  kind = 'tars'

  def __init__(self, root: pathlib.Path):
    self._root = root
    self.class_names = []  # of the synsets as they come
    self.total = sum(
      # A part of ImageNet has fewer: they take two blocks at least.
      min(IMAGENET_IMAGES[split], (root / name).stat().st_size // (2 * _BLOCK))
      for name, split in TARS.items()
      if (root / name).is_file()
    )

  def jobs(self, findings: Findings) -> Iterator[Callable[[], Outcome]]:
    for name, split in TARS.items():
      if not (self._root / name).is_file():
        findings.add('missing_file', name)
        continue
      with (self._root / name).open('rb') as file:
        if split == 'validation':
          yield from _tar_jobs(file, name, split, None, findings)
          continue
        for synset, inner in _members(file, name, findings):
          self.class_names.append(pathlib.PurePath(synset).stem)
          label = len(self.class_names) - 1
          yield from _tar_jobs(inner, synset, split, label, findings)

  def finish(self, tallies: dict, findings: Findings) -> None:
    for name, split in TARS.items():
      if (self._root / name).is_file():
        count = tallies[split].examples if split in tallies else 0
        expected = IMAGENET_IMAGES[split]
        report_count(findings, f'{split} images', count, expected)
    if (self._root / TRAIN_TAR).is_file():
      count = len(self.class_names)
      report_count(findings, 'classes', count, IMAGENET_CLASSES)


def _tar_jobs(file, tar_name, split, label, findings):
  prefix = '' if label is None else f'{pathlib.PurePath(tar_name).stem}/'
  for name, content in _members(file, tar_name, findings):
    try:
      encoded = content.read()
    except (tarfile.TarError, OSError) as error:
      found = [('truncated', str(error))]
      yield functools.partial(Outcome, split, prefix + name, label, found)
      continue
    yield functools.partial(examine_file, encoded, split, prefix + name, label)


def _members(file, tar_name, findings):
  """Yields (name, open file) of each file of a tar; damage becomes a finding.

  tarfile takes a tar that is cut off between two files, or goes on with
  garbage, for one that ends there; a whole one ends with a block of zeros.
  """
  try:
    with tarfile.open(fileobj=file, mode='r:') as tar:
      while (member := tar.next()) is not None:
        tar.members.clear()  # it would keep all of them
        if member.isfile():
          yield member.name, tar.extractfile(member)
      file.seek(tar.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
      findings.add('damaged_file', tar_name, 'it has no end mark')
  except (tarfile.TarError, OSError) as error:
    findings.add('damaged_file', tar_name, str(error))
