"""Finds equal images among millions, in little memory."""

import array
import hashlib

import numpy as np

from alexnet_jax.data.prepare.findings import Findings

_DIGEST_BYTES = 16  # two of 1.3 million differ with probability 1 - 1e-26


def digest(content: bytes | memoryview) -> bytes:
  """16 bytes that stand for the content."""
  return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


class DuplicateIndex:
  """Hashes, names, splits and labels of all images.

  Everything lies in flat buffers: about 30 bytes an image and its name, which
  for ImageNet is less than 100 MB.
  """

  def __init__(self):
    self._digests = bytearray()
    self._names = bytearray()
    self._name_ends = array.array('Q')
    self._labels = array.array('i')
    self._split_numbers = array.array('b')
    self._splits = []

  def add(
    self, content_digest: bytes, name: str, split: str, label: int | None
  ) -> None:
    """Adds an image.

    Args:
      content_digest: see `digest`.
      name: of the image.
      split: its split.
      label: None if it is not known.
    """
    if split not in self._splits:
      self._splits.append(split)
    self._digests += content_digest
    self._names += name.encode(errors='surrogateescape')
    self._name_ends.append(len(self._names))
    self._labels.append(-1 if label is None else label)
    self._split_numbers.append(self._splits.index(split))

  def report(self, findings: Findings) -> None:
    """Adds what is there more than once to the findings."""
    for group in self._groups():
      first, *copies = group
      seen = {self._split_numbers[first]: first}
      for index in copies:
        other = seen.setdefault(self._split_numbers[index], index)
        if other != index:
          findings.add('duplicate', self._pair(index, other))
      for index in list(seen.values())[1:]:
        findings.add('duplicate_between_splits', self._pair(index, first))
      self._report_labels(group, findings)

  def _report_labels(self, group, findings):
    known = [i for i in group if self._labels[i] >= 0]
    for index in known[1:]:
      if self._labels[index] != self._labels[known[0]]:
        findings.add('duplicate_with_two_labels', self._pair(index, known[0]))
        break

  def _groups(self):
    """Lists of the indices of equal images, each in order, by their first."""
    hashes = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable
    ordered = hashes[order]
    new = np.ones(len(order) + 1, bool)
    new[1:-1] = (ordered[1:] != ordered[:-1]).any(1)
    starts = np.flatnonzero(new)
    many = np.flatnonzero(np.diff(starts) > 1)
    groups = [order[starts[i] : starts[i + 1]].tolist() for i in many]
    return sorted(groups)

  def _pair(self, index, other):
    return f'{self._name(index)} = {self._name(other)}'

  def _name(self, index):
    start = self._name_ends[index - 1] if index else 0
    name = self._names[start : self._name_ends[index]]
    return bytes(name).decode(errors='surrogateescape')
