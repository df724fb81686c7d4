"""Durations, as people read them."""

import pytest

from alexnet_jax.training import reporting


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(12.4, '12 s'), (250, '4 min 10 s'), (11_110, '3 h 05 min')],
)
def test_duration(seconds, text):
  assert reporting.duration(seconds) == text
