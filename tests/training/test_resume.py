"""A run refuses to go on where its numbers would change."""

import json
import re

import jax
from jax.sharding import Mesh
import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax import validation
from alexnet_jax.config import KEYS
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


# All others change what is trained, or what the checkpoints say of it.
FREE = {'num_epochs', 'num_steps', 'save_every_epochs', 'save_every_steps'}
FREE |= {'microbatch_size', 'log_every_steps', 'histogram_every_evals'}
FREE |= {'report', 'parallel', 'implementation', 'guards.flat_loss_steps'}
FREE |= {'data.path', 'data.num_threads', 'data.prefetch', 'checkpoint.keep'}


@pytest.mark.parametrize('name', sorted(KEYS))
def test_every_key_but_the_free_ones_is_refused(tmp_path, name):
  stored, config = make_config(), make_config()
  *section, key = name.split('.')
  home = config[section[0]] if section else config
  with home.unlocked():
    match home[key]:
      case bool() as value:
        home[key] = not value
      case int() | float() as value:
        home[key] = value + 1
      case str() as value:
        home[key] = value + 'x'
      case value:
        home[key] = (*(value or ()), 'x')
  if name in FREE:
    resume.check_config(config, tmp_path, stored)
    return
  with pytest.raises(UserError, match=rf'\n  config\.{re.escape(name)}: '):
    resume.check_config(config, tmp_path, stored)


def test_unreadable_images_may_be_skipped_from_now_on(tmp_path):
  """Until now none was unreadable, or the run had stopped."""
  stored, config = make_config(), make_config()
  config.data.unreadable = 'skip'
  resume.check_config(config, tmp_path, stored)
  with pytest.raises(UserError, match=r'config\.data\.unreadable: '):
    resume.check_config(stored, tmp_path, config)


def test_the_length_shapes_a_cosine(tmp_path):
  stored, config = make_config(), make_config()
  stored.schedule.name = config.schedule.name = 'cosine'
  config.num_epochs = 91.0
  with pytest.raises(UserError, match=r'num_epochs: .*\n.*cosine schedule'):
    resume.check_config(config, tmp_path, stored)


def test_a_run_that_was_fine_tuned_forgets_where_it_began(tmp_path):
  stored, config = make_config(), make_config()
  stored.init.workdir, config.init.workdir = '/there', '/moved'
  resume.check_config(config, tmp_path, stored)
  stored.init.workdir = ''
  with pytest.raises(UserError, match=r'init\.workdir'):
    resume.check_config(config, tmp_path, stored)


# Saves at 4, 8, ...: with a row after the second one, the first was complete.
@pytest.mark.parametrize(
  ('rows', 'has_folder', 'refused'),
  [
    ([], False, False),
    ([2], False, True),
    ([2, 4], True, False),
    ([2, 4, 6, 8], True, False),
    ([2, 4, 6, 8, 9], True, True),
  ],
)
def test_a_history_whose_checkpoints_are_gone_stays(
  tmp_path, rows, has_folder, refused
):
  rows = [json.dumps({'step': step}) for step in rows]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(rows))
  config = make_config()
  config.update(eval_every_steps=4, eval_every_epochs=0.0)
  config_lib.write_config(config, tmp_path)
  config.save_every_steps = 1  # from now on
  if not refused:
    resume.check_history(tmp_path, config, 100, has_folder)
    return
  with pytest.raises(UserError, match='has the history of a run up to step'):
    resume.check_history(tmp_path, config, 100, has_folder)
