import errno
import os
import subprocess
import sys

import pytest

from alexnet_jax import files
from alexnet_jax.errors import UserError
from tests.evaluation.conftest import read_csv


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_what_was_there_stays_if_writing_fails(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')

  def fail():
    with files.replaced_file(path) as temporary:
      temporary.write_text('ne')
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fail()
  assert path.read_text() == 'old'
  assert names(tmp_path) == ['a.txt']


def test_content_then_name_then_folder_reach_the_disk(tmp_path, monkeypatch):
  path, calls = tmp_path / 'a.txt', []

  def fsync(descriptor):
    calls.append((os.fstat(descriptor).st_ino, path.exists()))

  monkeypatch.setattr(os, 'fsync', fsync)
  with files.replaced_file(path) as temporary:
    temporary.write_text('new')
  content, folder = path.stat().st_ino, tmp_path.stat().st_ino
  assert calls == [(content, False), (folder, True)]
  assert (names(tmp_path), path.read_text()) == (['a.txt'], 'new')


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
  target, link = tmp_path / 'a.txt', tmp_path / 'link.txt'
  target.write_text('old')
  link.symlink_to(target)
  with files.replaced_file(link) as temporary:
    temporary.write_text('new')
  assert not link.is_symlink()
  assert (target.read_text(), link.read_text()) == ('old', 'new')


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
  path = tmp_path / 'a.txt'
  with files.replaced_file(path) as first, files.replaced_file(path) as second:
    first.write_text('first')
    second.write_text('second')
  assert path.read_text() == 'first'  # put in place last, and whole


def test_what_is_no_plain_file_is_written_itself(tmp_path):
  os.mkfifo(pipe := tmp_path / 'pipe')
  with files.replaced_file(pipe) as temporary:
    assert temporary == pipe


def test_dev_stdout_is_written_itself_to_a_plain_file_too(tmp_path):
  script = (
    "from alexnet_jax import files; files.write_csv('/dev/stdout', ['ab'])"
  )
  with (tmp_path / 'out').open('w') as out:
    subprocess.run([sys.executable, '-c', script], stdout=out, check=True)
  assert (tmp_path / 'out').read_text() == 'a,b\n'
  (tmp_path / 'link').symlink_to('/dev/null')
  with files.replaced_file(tmp_path / 'link') as temporary:
    temporary.write_text('new')
  assert not (tmp_path / 'link').is_symlink()


def test_a_table_may_hold_any_name(tmp_path):
  rows = [['name', 'n'], ['a,"b"\nc', 1], ['bad \udcff', None]]
  files.write_csv(tmp_path / 'a.csv', rows)
  header, *found = read_csv(tmp_path / 'a.csv')
  assert header == ['name', 'n']
  assert found == [['a,"b"\nc', '1'], ['bad \\udcff', '']]
  files.write_csv(tmp_path / 'b.csv', rows, errors='surrogateescape')
  assert b'bad \xff,' in (tmp_path / 'b.csv').read_bytes()


def test_without_locks_it_is_said(tmp_path, monkeypatch, caplog):
  """As Lustre is without `-o flock`, and NFS without its daemon."""

  def flock(file, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(files.fcntl, 'flock', flock)
  with files.lock(tmp_path, 'busy'), files.lock(tmp_path, 'busy'):
    assert f'cannot be locked ({os.strerror(errno.ENOLCK)})' in caplog.text


def test_no_link_is_followed_to_lock_a_folder(tmp_path):
  other = tmp_path / 'thesis.tex'
  other.write_text('much work')
  folder = tmp_path / 'folder'
  folder.mkdir()
  (folder / files.LOCK_FILE).symlink_to(other)
  with pytest.raises(UserError, match='is a link'):
    files.lock(folder, 'busy')
  (folder / files.LOCK_FILE).unlink()
  os.link(other, folder / files.LOCK_FILE)  # this is the file itself
  with files.lock(folder, 'busy'):
    pass
  assert other.read_text() == 'much work'
