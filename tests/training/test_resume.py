"""A run refuses to go on where its numbers would change."""

import jax
from jax.sharding import Mesh
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.training import distributed
from alexnet_jax.training import parallel
from alexnet_jax.training import resume
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.progress import SavedRun
from alexnet_jax.training.schedule import PlateauState
from tests.system import commands


def check(monkeypatch, before, devices, *overrides):
  """`before` microbatches in the checkpoint; None: there is no checkpoint."""
  monkeypatch.chdir(commands.ROOT)
  config = validation.load_config(
    ['--config=configs/quickstart.py', *overrides]
  )
  mesh = Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
  saved = before and SavedRun(
    config=config,
    data={},
    progress=Progress(PlateauState(0.1)),
    iterator={},
    num_microbatches=before,
  )
  resume.check_microbatches(config, mesh, saved)


NORMS = ('--config.model.norm=batch', '--config.model.norm_hidden=(1,)')


@pytest.mark.parametrize('norm', NORMS)
def test_other_microbatches_are_other_statistics(monkeypatch, norm):
  size = '--config.microbatch_size=16'
  check(monkeypatch, 4, 1, norm, size)
  with pytest.raises(UserError, match=r'microbatch_size=8$'):
    check(monkeypatch, 4, 2, norm, size)
  check(monkeypatch, 4, 2, norm, '--config.microbatch_size=8')
  with pytest.raises(UserError, match=r'microbatch_size=16$'):
    check(monkeypatch, 4, 1, norm)
  check(monkeypatch, None, 2, norm, size)


def test_without_batch_norm_microbatches_are_free(monkeypatch):
  assert check(monkeypatch, 4, 2, '--config.microbatch_size=16') is None


def test_microbatches_that_are_not_possible(monkeypatch):
  batch = '--config.global_batch_size=12'
  with pytest.raises(UserError, match='8 microbatches are not possible on 4'):
    check(monkeypatch, 8, 4, NORMS[0], batch)


def test_a_batch_that_has_no_divisor_near_the_size_is_refused(monkeypatch):
  size = '--config.microbatch_size=16'
  check(monkeypatch, None, 1, '--config.global_batch_size=60', size)
  with pytest.raises(UserError, match='only into 53 microbatches of 1'):
    check(monkeypatch, None, 1, '--config.global_batch_size=53', size)


def test_data_that_has_changed_is_named(tmp_path):
  before = {'fingerprint': 'a', 'num_examples': 3}
  resume.check_data_record(tmp_path, before, dict(before))
  with pytest.raises(UserError, match="fingerprint: 'a' -> 'b'"):
    resume.check_data_record(tmp_path, before, {**before, 'fingerprint': 'b'})
  with pytest.raises(UserError, match='seed: None -> 1'):
    resume.check_data_record(tmp_path, before, {**before, 'seed': 1})


def test_what_is_different_is_said_where_a_run_goes_on():
  before = make_config()
  saved = SavedRun(
    config=before,
    data={},
    progress=Progress(PlateauState(0.01)),
    iterator={},
    devices=jax.device_count(),
  )
  after = make_config()
  after.num_epochs = 5.0
  mesh, alone = parallel.make_mesh(), distributed.current()
  same = resume.describe(saved, before, 7, mesh, alone)
  assert same == ['goes on from checkpoint 7']
  assert resume.describe(saved, after, 7, mesh, alone) == [
    *same,
    'config.num_epochs: 90.0 -> 5.0',
  ]
  saved.versions['jax'] = '0.0'
  assert 'jax 0.0 -> ' in resume.describe(saved, before, 7, mesh, alone)[1]
