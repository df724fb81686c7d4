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

  def cores(self):
    return os.sched_getaffinity(0), os.environ['ANSWER']

  def fail(self, kind):
    raise {'user': UserError, 'lacks': NotImplementedError, 'bug': OSError}[
      kind
    ]('what is wrong')

  def die(self):
    os.write(2, b'the last words')
    os._exit(3)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
  (tmp_path / 'handler.py').write_text(HANDLER)
  monkeypatch.syspath_prepend(tmp_path)

  def start(name, **options):
    environment = {'ANSWER': '42'}
    return harness.Worker('handler', name, environment=environment, **options)

  return start


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='cores are bound on Linux only'
)
def test_a_worker_runs_on_its_cores_in_its_environment(start):
  core = max(os.sched_getaffinity(0))
  with start('first', cores=[core]) as worker:
    assert worker.ask('cores') == ({core}, '42')
  assert 'ANSWER' not in os.environ


def test_errors_come_back_and_the_worker_goes_on(start, capsys):
  with start('first') as worker:
    for kind, error in (
      ('user', UserError),
      ('lacks', harness.UnsupportedError),
      ('bug', harness.WorkerError),
    ):
      with pytest.raises(error, match='what is wrong'):
        worker.ask('fail', kind=kind)
      assert ('Traceback' in capsys.readouterr().err) == (kind == 'bug')
      assert worker.ask('add', a=1, b=2) == ('first', 3)


def test_a_missing_library_is_unsupported_whatever_is_asked(start):
  with start('missing') as worker:
    for _ in range(2):
      with pytest.raises(harness.UnsupportedError, match='no library'):
        worker.ask('add', a=1, b=2)


def test_a_process_that_dies_leaves_its_last_words(start):
  with start('first') as worker:
    for _ in range(2):
      with pytest.raises(harness.WorkerError, match='the last words'):
        worker.ask('die')
