"""Cases of a test, of which most are slow ones."""

from collections.abc import Collection, Iterable

import pytest


def some_slow(cases: Iterable, quick: Collection) -> list:
  """For `pytest.mark.parametrize`; the cases beside `quick` are marked slow.

  Args:
    cases: a value each, or a tuple of values.
    quick: those that always run.
  """
  cases = list(cases)
  if unknown := [case for case in quick if case not in cases]:
    raise ValueError(f'no cases: {unknown}')
  slow = pytest.mark.slow
  return [
    pytest.param(
      *(case if isinstance(case, tuple) else (case,)),
      marks=() if case in quick else slow,
    )
    for case in cases
  ]
