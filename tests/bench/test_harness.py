"""One process for each candidate, and what it answers."""

import os

import pytest

from alexnet_jax.bench import harness
from alexnet_jax.errors import UserError

HANDLER = """
import os
from alexnet_jax.errors import UserError

class Handler:
  def __init__(self, name):
    print('libraries print')
    if name == 'missing':
      raise ImportError('no library')
    self.name = name

  def add(self, a, b):
    return self.name, a + b

  def answer(self):
    return os.environ['ANSWER']

  def fail(self, kind):
    raise {'user': UserError, 'bug': OSError}[kind]('what is wrong')

  def die(self):
    os.write(2, b'the last words')
    os._exit(3)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
  (tmp_path / 'handler.py').write_text(HANDLER)
  monkeypatch.syspath_prepend(tmp_path)

  def start(name):
    return harness.Worker('handler', name, {'ANSWER': '42'})

  return start


def test_a_worker_runs_in_its_environment(start):
  with start('first') as worker:
    assert worker.ask('answer') == '42'
  assert 'ANSWER' not in os.environ


def test_errors_come_back_and_the_worker_goes_on(start, capsys):
  with start('first') as worker:
    for kind, error in (('user', UserError), ('bug', harness.WorkerError)):
      with pytest.raises(error, match='what is wrong'):
        worker.ask('fail', kind=kind)
      assert ('Traceback' in capsys.readouterr().err) == (kind == 'bug')
      assert worker.ask('add', a=1, b=2) == ('first', 3)


def test_a_missing_library_is_named_whatever_is_asked(start, capsys):
  with start('missing') as worker:
    for _ in range(2):
      with pytest.raises(harness.WorkerError, match='no library'):
        worker.ask('add', a=1, b=2)
  assert 'Traceback' not in capsys.readouterr().err


def test_a_process_that_dies_leaves_its_last_words(start):
  with start('first') as worker:
    for _ in range(2):
      with pytest.raises(harness.WorkerError, match='the last words'):
        worker.ask('die')


class FakeWorker:
  """Measures what it is given, in turn; None is a failure."""

  def __init__(self, name, speeds, asked):
    self.name, self.speeds, self.asked = name, iter(speeds), asked

  def ask(self, method):
    self.asked.append(self.name)
    if (speed := next(self.speeds)) is None:
      raise harness.WorkerError('no compiler')
    return speed


def measure(**speeds):
  """Returns (rows, failed, names in the order in which they were asked)."""
  asked, failed = [], []
  entries = [
    (name, 'train', FakeWorker(name, values, asked), {})
    for name, values in speeds.items()
  ]
  return harness.measure(entries, len(speeds['ours']), failed), failed, asked


def test_ratios_are_within_rounds():
  """The machine is ten times as fast in the first round: the ratio stays."""
  (ours, torch), failed, _ = measure(ours=[60, 3, 6], torch=[20, 1, 4])
  assert ours == {
    'candidate': 'ours',
    'case': 'train',
    'images_per_second': [60, 3, 6],
    'median': 6,
    'min': 3,
    'max': 60,
    'ours_by_it': 1,
  }
  assert torch['ours_by_it'] == 3
  assert failed == []


def test_candidates_take_turns():
  names = ['ours', 'torch', 'keras']
  *_, asked = measure(**{name: [1] * 9 for name in names})
  turns = [tuple(asked[i : i + 3]) for i in range(0, 27, 3)]
  assert all(sorted(turn) == sorted(names) for turn in turns)
  assert len({turn[0] for turn in turns}) == 3


def test_a_peer_that_fails_is_named_and_the_others_go_on(capsys):
  rows, failed, asked = measure(ours=[1, 1, 1], torch=[1, None], keras=[1] * 3)
  assert [row['candidate'] for row in rows] == ['ours', 'keras']
  failure = {'candidate': 'torch', 'case': 'train', 'reason': 'no compiler'}
  assert failed == [failure]
  assert asked.count('torch') == 2
  assert 'not measured: torch, train: no compiler' in capsys.readouterr().err
  with pytest.raises(harness.WorkerError, match='ours, train: no compiler'):
    measure(ours=[None])
