import csv
import os
import pathlib

import pytest

from alexnet_jax import atomic


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_the_place_of_another(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with atomic.replaced_file(path) as temporary:
    temporary.write_text('new')
    assert path.read_text() == 'old'
  assert path.read_text() == 'new'
  assert names(tmp_path) == ['a.txt']


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_what_was_there_stays_if_writing_fails(tmp_path, error):
  path = tmp_path / 'a.txt'
  path.write_text('old')

  def fail():
    with atomic.replaced_file(path) as temporary:
      temporary.write_text('ne')
      raise error

  with pytest.raises(error):
    fail()
  assert path.read_text() == 'old'
  assert names(tmp_path) == ['a.txt']


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
  path, calls = tmp_path / 'a.txt', []

  def fsync(descriptor):
    calls.append(os.fstat(descriptor).st_ino)
    assert not path.exists()

  monkeypatch.setattr(os, 'fsync', fsync)
  with atomic.replaced_file(path) as temporary:
    temporary.write_text('new')
  assert calls == [path.stat().st_ino]


def test_a_link_stays_one(tmp_path):
  (tmp_path / 'there').mkdir()
  target, link = tmp_path / 'there' / 'a.txt', tmp_path / 'link.txt'
  target.write_text('old')
  link.symlink_to(target)
  with atomic.replaced_file(link) as temporary:
    assert temporary.parent == target.parent
    temporary.write_text('new')
  assert link.is_symlink()
  assert target.read_text() == 'new'


def test_what_is_no_plain_file_is_written_itself(tmp_path):
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  with atomic.replaced_file(pipe) as temporary:
    assert temporary == pipe
  assert pipe.is_fifo()


def test_a_table_may_hold_any_name(tmp_path):
  rows = [['name', 'n'], ['a,"b"\nc', 1], ['bad \udcff', None]]
  atomic.write_csv(tmp_path / 'a.csv', rows)
  with (tmp_path / 'a.csv').open(newline='', encoding='utf-8') as file:
    assert list(csv.reader(file)) == [
      ['name', 'n'],
      ['a,"b"\nc', '1'],
      ['bad \\udcff', ''],
    ]
  atomic.write_csv(tmp_path / 'b.csv', rows, errors='surrogateescape')
  assert b'bad \xff,' in pathlib.Path(tmp_path / 'b.csv').read_bytes()
