"""What a run refuses to go on with."""

import jax
from jax.sharding import Mesh
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.errors import UserError
from alexnet_jax.training import parallel
from alexnet_jax.training import refusals
from tests.system import commands


def check(monkeypatch, saved, devices, *overrides):
  monkeypatch.chdir(commands.ROOT)
  config = validation.load_config(
    ['--config=configs/quickstart.py', *overrides]
  )
  mesh = Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
  refusals.check_pieces(config, mesh, saved)


NORMS = ('--config.model.norm=batch', '--config.model.norm_hidden=(1,)')


@pytest.mark.parametrize('norm', NORMS)
def test_other_pieces_are_other_statistics(monkeypatch, norm):
  saved = {'pieces': 4}  # of 16, on one device
  most = '--config.microbatch_size=16'
  check(monkeypatch, saved, 1, norm, most)
  with pytest.raises(UserError, match=r'microbatch_size=8$'):
    check(monkeypatch, saved, 2, norm, most)
  check(monkeypatch, saved, 2, norm, '--config.microbatch_size=8')
  with pytest.raises(UserError, match=r'microbatch_size=16$'):
    check(monkeypatch, saved, 1, norm)
  check(monkeypatch, {}, 2, norm, most)  # of a run that knew no pieces
  check(monkeypatch, None, 2, norm, most)


def test_without_batch_norm_pieces_are_free(monkeypatch):
  arguments = {'pieces': 4}, 2, '--config.microbatch_size=16'
  assert check(monkeypatch, *arguments) is None
  with pytest.raises(UserError, match='microbatch_size=8'):
    check(monkeypatch, *arguments, NORMS[0])


def test_pieces_that_are_not_possible(monkeypatch):
  batch = '--config.global_batch_size=12'
  with pytest.raises(UserError, match='8 pieces are not possible on 4 devices'):
    check(monkeypatch, {'pieces': 8}, 4, NORMS[0], batch)


def test_a_batch_that_has_no_pieces_near_the_size_is_refused(monkeypatch):
  most = '--config.microbatch_size=16'
  check(monkeypatch, None, 1, '--config.global_batch_size=60', most)
  with pytest.raises(UserError, match='only in 53 of 1'):
    check(monkeypatch, None, 1, '--config.global_batch_size=53', most)
