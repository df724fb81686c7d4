"""Counts of the examples of a split, and their comparison with others."""

import collections
import dataclasses

import numpy as np

from alexnet_jax.data.prepare.diagnosis import Outcome
from alexnet_jax.data.prepare.findings import Findings


@dataclasses.dataclass
class Tally:
  """The examples of a split.

  Attributes:
    examples: how many.
    labels: how many of each known label.
    sums: int64 [3], of each color; products: int64 [3, 3], of each pair.
  """

  examples: int = 0
  labels: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  sums: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(3, np.int64)
  )
  products: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((3, 3), np.int64)
  )

  def add(self, outcome: Outcome) -> None:
    """Adds an example."""
    self.examples += 1
    if outcome.label is not None:
      self.labels[outcome.label] += 1
    if outcome.colors:
      self.sums += outcome.colors[0]
      self.products += outcome.colors[1]

  def as_dict(self) -> dict:
    """{examples, classes}; classes is None if no label is known."""
    return {'examples': self.examples, 'classes': len(self.labels) or None}


def report_count(
  findings: Findings, what: str, count: int, expected: int
) -> None:
  """Adds a finding if two numbers differ."""
  if count != expected:
    findings.add('wrong_count', f'{what}: {count:,}, not {expected:,}')


def report_unused_classes(
  findings: Findings, class_names: list[str], tally: Tally
) -> None:
  """Adds the classes without a training image to the findings."""
  for label, name in enumerate(class_names):
    if not tally.labels[label]:
      findings.add('unused_class', name)
