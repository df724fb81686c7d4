"""Where the time of a run went, and its speed."""

import errno
import json
import math

import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.training import accounting, build, writers
from alexnet_jax.training.accounting import Clock
from tests.system import commands

FILE = accounting.TIMES_FILE


class Log:
  """Counts how often it is waited for."""

  flushed = 0

  def flush(self):
    self.flushed += 1


@pytest.fixture
def pass_time(monkeypatch):
  """Lets the clock stand still but for the seconds it is called with."""
  now = [100.0]
  monkeypatch.setattr(accounting.time, 'perf_counter', lambda: now[0])
  return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_every_second_is_of_one_kind(pass_time):
  """And the speed leaves out what is not training, and the first step."""
  log, clock = Log(), Clock(8, age=3.0)
  clock.mfu_per_image = 0.01
  pass_time(1)
  clock.switch('compile')
  with clock.waiting():  # the first batch
    pass_time(4)
  pass_time(50)
  clock.count_step(log)
  assert clock.speed() == {}
  with clock.waiting():
    pass_time(0.5)
  pass_time(1.5)
  clock.count_step(log)
  clock.count_step(log)
  before = clock.switch('evaluate')
  pass_time(1000)
  clock.switch(before)
  values = {'images_per_second': 8.0, 'data_wait_fraction': 0.25, 'mfu': 0.08}
  assert clock.speed() == values
  pass_time(2)
  clock.count_step(log)
  assert clock.speed()['images_per_second'] == 4.0
  assert clock.speed(whole=True)['images_per_second'] == 6.0
  assert log.flushed == 1
  seconds = {kind: value for kind, value in clock.read().items() if value}
  assert seconds == {
    'start': 4.0,
    'compile': 54.0,
    'train': 3.5,
    'data_wait': 0.5,
    'evaluate': 1000.0,
  }


def life(begun, first, step, train, ended=0, **others):
  seconds = dict.fromkeys(accounting.KINDS, 0.0) | {'train': train} | others
  row = {'begun': begun, 'step': step, 'ended': ended, **seconds}
  return json.dumps(row | ({} if first is None else {'first_step': first}))


def test_what_was_made_again_is_counted_by_hand(tmp_path):
  """Two kills, one while starting, and a checkpoint that was damaged."""
  lines = [
    # Steps 2 to 101 in 100 s: 80 of them are made again.
    life(1000, 0, 101, 100.0, start=10.0, data_wait=50.0),
    # All, as the next one goes on from before it.
    life(2000, 40, 61, 20.0, evaluate=5.0),
    life(3000, None, 0, 0.0, start=7.0),
    life(3007.01, 21, 200, 30.0, ended=1, save=2.0),
    '{"step": 3',
    life(1, 0, 5, -1.0),
  ]
  (tmp_path / FILE).write_text('\n'.join(lines))
  found = accounting.account(tmp_path)
  assert found.seconds == pytest.approx(
    {
      'start': 17.0,
      'compile': 0.0,
      'train': 20.0 + 30.0,
      'data_wait': 10.0,
      'evaluate': 5.0,
      'save': 2.0,
      'other': 0.0,
      'repeated': 80.0 + 40.0 + 20.0,
      # 0.5 % of 160 s, 0.05 s (at least), and no more than until the next.
      'lost': 0.8 + 0.125 + 0.01,
    }
  )
  assert found.timed_steps == 20 + 0 + 178
  shares = [float(share[:-1]) for *_, share in accounting.table(found.seconds)]
  assert sum(shares) == pytest.approx(100, abs=0.4)
  assert accounting.account(tmp_path / 'nowhere').seconds == {}


@pytest.mark.parametrize('before', ['', '{"step": 1}\n', '{"step": 1'])
def test_a_process_adds_its_line(tmp_path, before, monkeypatch):
  """Also behind a broken one, and on a disk that was full for a while."""
  path = tmp_path / FILE
  if before:
    path.write_text(before)
  clock, pwrite, full = Clock(8, age=1.0), accounting.os.pwrite, [True]

  def write(*arguments):
    if full.pop() if full else False:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return pwrite(*arguments)

  monkeypatch.setattr(accounting.os, 'pwrite', write)
  with accounting.recorded(tmp_path, clock):
    clock.first_step = 7
    clock.count_step(Log())
  *others, line = path.read_text().splitlines()
  assert others == before.splitlines()
  row = json.loads(line)
  assert (row['first_step'], row['step'], row['ended']) == (7, 8, 1)
  total = sum(accounting.account(tmp_path).seconds.values())
  assert math.isclose(total, sum(row[k] for k in accounting.KINDS))
  content = path.read_bytes()
  with pytest.raises(UserError), accounting.recorded(tmp_path, Clock(8)):
    raise UserError('refused')
  assert path.read_bytes() == content


def test_a_run_tells_its_speed_and_where_its_time_went(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(build, 'mfu_per_image', lambda *_: 1e-3)
  recipe = commands.write_recipe(tmp_path, num_steps=8, eval_every_steps=4)
  seconds = commands.train_here(recipe, tmp_path / 'run', age=100.0)['seconds']
  assert seconds.keys() == accounting.NAMES.keys()
  spent = {kind for kind, value in seconds.items() if value}
  assert spent == {*accounting.KINDS} - {'other'}  # no trace
  assert seconds['start'] > 100
  err = capsys.readouterr().err
  assert 'over all starts: starting up' in err
  assert err.count('waiting for data, MFU ') == 2
  rows = [row for row in writers.read_rows(tmp_path / 'run') if 'mfu' in row]
  assert [row['step'] for row in rows] == [4, 8]
  for row in rows:
    assert row['mfu'] == pytest.approx(row['images_per_second'] / 1000)
