"""A run refuses to go on where its numbers would change."""

import contextlib
import json
import re

import jax
from jax.sharding import Mesh
import numpy as np
import pytest

from alexnet_jax.config import KEYS, make_config
from alexnet_jax.errors import UserError
from alexnet_jax.training import distributed, parallel, resume
from alexnet_jax.training.progress import DataRecord, Progress, SavedRun
from alexnet_jax.training.schedule import PlateauState


def expected(message):
  """The context of a refusal with a message; '': of none."""
  if message:
    return pytest.raises(UserError, match=message)
  return contextlib.nullcontext()


def make_run(config, **fields):
  return SavedRun(
    config, DataRecord([]), Progress(PlateauState(0.1)), {}, **fields
  )


# Without a checkpoint (before is None) there is nothing to compare with.
@pytest.mark.parametrize(
  ('before', 'devices', 'norm', 'batch', 'message'),
  [
    (4, 2, 'batch', 64, 'are 2, .* that gives 4$'),
    (None, 2, 'batch', 64, ''),
    (4, 2, 'lrn', 64, ''),
    # No divisor is near the size.
    (None, 1, 'lrn', 53, 'only into 53 microbatches of 1'),
  ],
)
def test_other_microbatches_are_other_statistics(
  before, devices, norm, batch, message
):
  config = make_config()
  config.update(global_batch_size=batch, microbatch_size=16)
  config.model.norm = norm
  mesh = Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
  saved = before and make_run(config, num_microbatches=before)
  with expected(message):
    resume.check_microbatches(config, mesh, saved)


def test_what_is_different_is_said_where_a_run_goes_on():
  before, after = make_config(), make_config()
  saved = make_run(before, devices=4)
  after.num_epochs = 5.0
  machine = {'devices': 4, 'processes': 1}
  same = resume.describe(saved, before, 7, machine)
  assert same == ['goes on from checkpoint 7']
  assert resume.describe(saved, after, 7, machine) == [
    *same,
    'config.num_epochs: 90.0 -> 5.0',
  ]
  saved.versions['jax'] = '0.0'
  lines = resume.describe(saved, before, 7, machine | {'devices': 2})
  assert 'with devices 4 -> 2, jax 0.0 -> ' in lines[1]


def test_processes_that_differ_are_refused(monkeypatch):
  group = distributed.ProcessGroup(0, 2)

  def gather(own):
    return [own, ['host-1', {**own[1], 'config.seed': 3}]]

  monkeypatch.setattr(group, 'gather', gather)
  monkeypatch.setattr(distributed, 'current', lambda: group)
  message = r'(?s)process 1, on host-1, differs .*config\.seed: 0 -> 3'
  with pytest.raises(UserError, match=message):
    resume.check_processes(make_config(), None)


# All others change what is trained, or what the checkpoints say of it.
FREE = """
  num_epochs num_steps save_every_epochs save_every_steps save_every_minutes
  microbatch_size log_every_steps loggers report parallel implementation
  guards.flat_loss_steps checkpoint.keep checkpoint.keep_at
  data.path data.num_threads data.prefetch"""


def test_every_key_but_the_free_ones_is_refused(tmp_path):
  for name in KEYS:
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
    message = rf'\n  config\.{re.escape(name)}: '
    with expected('' if name in FREE.split() else message):
      resume.check_config(config, tmp_path, stored)


def test_unreadable_images_may_be_skipped_from_now_on(tmp_path):
  """Until now none was unreadable, or the run had stopped."""
  stored, config = make_config(), make_config()
  config.data.unreadable = 'skip'
  resume.check_config(config, tmp_path, stored)
  with pytest.raises(UserError, match=r'config\.data\.unreadable: '):
    resume.check_config(stored, tmp_path, config)


def test_the_length_shapes_a_schedule(tmp_path):
  stored, config = make_config(), make_config()
  stored.schedule.name = config.schedule.name = 'cosine'
  config.num_epochs = 91.0
  with pytest.raises(UserError, match=r'num_epochs: .*\n.*shapes its schedule'):
    resume.check_config(config, tmp_path, stored)


# After the second evaluation the save that followed the first was complete.
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
  rows = [{'step': n} | ({} if n % 4 else {'eval/loss': 1.0}) for n in rows]
  history = '\n'.join(map(json.dumps, rows))
  (tmp_path / 'metrics.jsonl').write_text(history)
  if has_folder:
    (tmp_path / 'checkpoints').mkdir()
  with expected('the history of a run up to step' * refused):
    resume.check_history(tmp_path)
