"""prepare resize and raw: killed, on a full disk, with wrong arguments."""

import hashlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data.prepare import shards
from alexnet_jax.data.prepare.__main__ import main as prepare

ROOT = pathlib.Path(__file__).parents[2]
PREPARE = [sys.executable, '-m', 'alexnet_jax.data.prepare']


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """240 images that take a while to decode, two of them damaged."""
  root = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  for name in ('cat', 'dog'):
    (root / name).mkdir()
    for i in range(120):
      coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
      image = PIL.Image.fromarray(coarse).resize((800, 600))
      image.save(root / name / f'{i:03d}.jpg', quality=90)
    (root / name / '007.jpg').write_bytes(b'damaged')
  return root


def arguments(command, photos, out):
  return [
    *(command, '--source', 'folder', '--path', str(photos)),
    *('--out', str(out), '--size', '64', '--shard_examples', '5'),
    *('--unreadable', 'skip', '--json'),
  ] + (['--name', 'photos'] if command == 'resize' else [])


def files(folder):
  """{name: hash} of everything below a folder."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def finished(out):
  return len(list(out.rglob('.unfinished/*-of-*.json')))


@pytest.mark.parametrize(
  'command', ['raw', pytest.param('resize', marks=pytest.mark.slow)]
)
def test_ten_kills_leave_the_same_bytes(command, photos, tmp_path):
  whole, out = tmp_path / 'whole', tmp_path / 'killed'
  assert prepare(arguments(command, photos, whole)) == 0
  rng = random.Random(0)
  for kill in range(10):
    process = subprocess.Popen(
      [*PREPARE, *arguments(command, photos, out)],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    before, deadline = finished(out), time.monotonic() + 60
    while finished(out) == before and time.monotonic() < deadline:
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.03))
    assert process.poll() is None, f'it was done before kill {kill}'
    process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
    assert process.wait(60) in (-signal.SIGKILL, 75)
    assert not (out / 'manifest.json').exists()
    assert finished(out) > before  # what was finished stays
  assert prepare(arguments(command, photos, out)) == 0
  assert files(out) == files(whole)


@pytest.mark.parametrize('command', ['raw', 'resize'])
def test_a_full_disk_keeps_the_finished_shards(
  command, photos, small_disk, monkeypatch, capsys
):
  out = small_disk / 'out'
  others = small_disk / 'others'
  # ArrayRecord's files end with a block of 64 kB.
  room, per_shard, total = (
    (200_000, 5, 49) if command == 'raw' else (400_000, 20, 13)
  )
  command_line = [
    *arguments(command, photos, out),
    *('--shard_examples', str(per_shard)),
  ]
  monkeypatch.setattr(shards, 'check_room', lambda *_: None)  # at the start
  others.write_bytes(bytes(4 * 1024 * 1024 - room))
  assert prepare(command_line) == 2
  message = capsys.readouterr().err
  assert 'no space left' in message
  assert 'Traceback' not in message
  done = finished(out)
  assert f'{done} of {total} shards are finished' in message
  assert 0 < done < total
  assert not list(out.rglob('*.tmp'))
  before = files(out)
  others.unlink()
  assert prepare(command_line) == 0
  after = files(out)
  for name in before:
    if '.unfinished' not in name:
      assert after[name] == before[name]
  assert f'{done} of {total} shards are there' in capsys.readouterr().err


@pytest.mark.parametrize('command', ['raw', 'resize'])
def test_too_small_a_disk_is_refused_beforehand(
  command, photos, small_disk, capsys
):
  (small_disk / 'others').write_bytes(bytes(4 * 1024 * 1024 - 150_000))
  assert prepare(arguments(command, photos, small_disk / 'out')) == 2
  message = capsys.readouterr().err
  assert 'needs about' in message
  assert 'make room' in message
  assert finished(small_disk) == 0


def test_what_is_prepared_stays(photos, tmp_path, capsys):
  out = tmp_path / 'out'
  first = arguments('raw', photos, out)
  assert prepare(first) == 0
  result = json.loads(capsys.readouterr().out)
  assert result['splits'] == {'train': 192 - 1, 'validation': 48 - 1}
  assert result['skipped'] == 2
  before = files(out)
  assert prepare(first) == 0
  assert json.loads(capsys.readouterr().out) == result
  other = [*first, '--size', '32']
  assert prepare(other) == 2
  assert 'other settings' in capsys.readouterr().err
  assert files(out) == before


def test_unfinished_work_refuses_other_settings(photos, tmp_path, capsys):
  out = tmp_path / 'out'
  stopping = [a for a in arguments('raw', photos, out) if a != 'skip']
  stopping.remove('--unreadable')
  assert prepare(stopping) == 2
  message = capsys.readouterr().err
  assert '007.jpg' in message
  assert '--unreadable skip' in message
  assert prepare(arguments('raw', photos, out)) == 2
  assert "unreadable: 'stop' -> 'skip'" in capsys.readouterr().err


def test_a_folder_with_other_things_is_left_alone(photos, tmp_path, capsys):
  (tmp_path / 'thesis.tex').write_text('mine')
  assert prepare(arguments('raw', photos, tmp_path)) == 2
  assert 'is not empty' in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_two_processes_do_not_write_into_one_folder(photos, tmp_path, capsys):
  with shards.output(tmp_path / 'out', {}):
    assert prepare(arguments('raw', photos, tmp_path / 'out')) == 2
  assert 'another process is preparing' in capsys.readouterr().err
