"""prepare resize and raw: killed, on a full disk, with wrong arguments."""

import hashlib
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import PIL.Image
import pytest

from alexnet_jax import files, validation
from alexnet_jax.data import tfds_records
from alexnet_jax.data.prepare import raw, shards
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.training import build
from tests.data.pictures import encode, noise, write
from tests.system import commands


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """120 images that take a while to decode, two of them damaged."""
  root = tmp_path_factory.mktemp('photos')
  for number in range(120):
    coarse = PIL.Image.fromarray(noise(number, 6, 8))
    file = encode(coarse.resize((800, 600)), quality=90)
    name = f'{"cat" if number < 60 else "dog"}/{number % 60:03d}.jpg'
    write(root, {name: file if number % 60 != 7 else b'damaged'})
  return root


def arguments(command, photos, out, per_shard=5):
  line = f'{command} --source folder --size 64 --unreadable skip --json'
  line += f' --shard_examples {per_shard}'
  line += ' --name photos' if command == 'resize' else ''
  return [*line.split(), '--path', str(photos), '--out', str(out)]


def digests(folder):
  """{name: hash} of everything below a folder."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def start(line):
  quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
  command = [sys.executable, '-m', 'alexnet_jax.data.prepare', *line]
  return subprocess.Popen(command, cwd=commands.ROOT, **quiet)


def finished(out):
  return len(list(out.rglob('.unfinished/*-of-*.json')))


@pytest.mark.slow
def test_five_kills_leave_the_same_bytes(photos, tmp_path):
  whole, out = tmp_path / 'whole', tmp_path / 'killed'
  # One image a shard, so that it is never done too early.
  assert prepare(arguments('raw', photos, whole, 1)) == 0
  rng, kills = random.Random(0), 0
  while kills < 5:
    process = start(arguments('raw', photos, out, 1))
    before, deadline = finished(out), time.monotonic() + 60
    while finished(out) == before and time.monotonic() < deadline:
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.03))
    process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
    code = process.wait(300)
    if (out / 'manifest.json').exists():  # done before the kill: once more
      shutil.rmtree(out)
      continue
    kills += 1
    assert code in (-signal.SIGKILL, 75)
    assert finished(out) > before  # what was finished stays
  assert prepare(arguments('raw', photos, out, 1)) == 0
  assert digests(out) == digests(whole)


@pytest.mark.parametrize('command', ['raw', 'resize'])
def test_a_full_disk_keeps_the_finished_shards(
  command, photos, small_disk, monkeypatch, capsys
):
  out = small_disk / 'out'
  others = small_disk / 'others'
  # ArrayRecord's files end with a block of 64 kB.
  sizes = {'raw': (200_000, 5, 25), 'resize': (400_000, 20, 7)}
  room, per_shard, total = sizes[command]
  command_line = arguments(command, photos, out, per_shard)
  monkeypatch.setattr(shards.files, 'check_room', lambda *_: '')  # at the start
  others.write_bytes(bytes(4 * 1024 * 1024 - room))
  assert prepare(command_line) == 2
  message, done = capsys.readouterr().err, finished(out)
  assert 'No space left' in message
  assert f'{done} of {total} shards are finished' in message
  assert 0 < done < total
  assert not list(out.rglob('*.tmp'))
  before = digests(out).items()
  others.unlink()
  assert prepare(command_line) == 0
  assert {i for i in before if '.unfinished' not in i[0]} < {
    *digests(out).items()
  }
  assert f'{done} of {total} shards are there' in capsys.readouterr().err


def test_too_small_a_disk_is_refused_beforehand(photos, small_disk, capsys):
  (small_disk / 'others').write_bytes(bytes(4 * 1024 * 1024 - 150_000))
  assert prepare(arguments('resize', photos, small_disk / 'out')) == 2
  assert 'make room' in capsys.readouterr().err
  assert not (small_disk / 'out' / '.unfinished').exists()  # another size may


def test_what_is_prepared_stays(photos, tmp_path, capsys):
  first = arguments('raw', photos, tmp_path / 'out')
  results = []
  for _ in range(2):
    assert prepare(first) == 0
    results.append(json.loads(capsys.readouterr().out))
    before = digests(tmp_path)
  assert results[0] == results[1]
  assert results[0]['splits'] == {'train': 96 - 1, 'validation': 24 - 1}
  assert results[0]['skipped'] == 2
  assert prepare([*first, '--size', '32']) == 2
  assert 'image_size: 64 -> 32' in capsys.readouterr().err
  assert digests(tmp_path) == before
  (tmp_path / 'new' / '.unfinished').mkdir(parents=True)
  (tmp_path / 'new' / '.unfinished' / 'plan.json').write_text('{"a": 1}')
  assert prepare(arguments('raw', photos, tmp_path / 'new')) == 2
  assert 'image_size: None -> 64' in capsys.readouterr().err


def test_a_prepared_set_without_a_shard_is_refused(photos, tmp_path, capsys):
  line = arguments('resize', photos, tmp_path / 'out')
  assert prepare(line) == 0
  shard = next(tmp_path.glob('out/**/*train*-00001-of-*'))
  shard.unlink()
  before = digests(tmp_path)
  capsys.readouterr()
  assert prepare(line) == 2
  error = capsys.readouterr().err
  assert f'{shard} is missing' in error
  assert digests(tmp_path) == before
  shutil.rmtree(shard.parent)
  assert prepare(line) == 0
  assert shard.exists()


def test_what_stopped_goes_on_with_the_advised_flag(photos, tmp_path, capsys):
  out = tmp_path / 'out'
  stopping = [*arguments('raw', photos, out), '--unreadable', 'stop']
  assert prepare(stopping) == 2
  message = capsys.readouterr().err
  assert '007.jpg' in message
  assert '--unreadable skip' in message
  begun = finished(out)
  assert begun > 0
  assert prepare(arguments('raw', photos, out)) == 0
  assert f'{begun} of 25 shards are there already' in capsys.readouterr().err


class PowerCut(BaseException):
  """Nothing in the code under test catches it."""


def test_a_shard_that_is_gone_is_written_again(photos, tmp_path, monkeypatch):
  command_line = arguments('raw', photos, tmp_path / 'out', 50)
  with monkeypatch.context() as patch:
    patch.setattr(raw.RawSet, 'describe', mock.Mock(side_effect=PowerCut))
    with pytest.raises(PowerCut):
      prepare(command_line)
  shard = tmp_path / 'out' / 'train-00001-of-00002.npy'
  content = shard.read_bytes()
  shard.write_bytes(content[:-1])
  assert prepare(command_line) == 0
  assert shard.read_bytes() == content


def test_a_split_without_a_readable_image_is_an_error(tmp_path, capsys):
  image = encode(noise(0))
  for name in ('cat', 'dog'):
    files = {f'train/{name}/0.jpg': image, f'val/{name}/0.jpg': b'broken'}
    write(tmp_path / 'in', files)
  for _ in range(2):
    assert prepare(arguments('raw', tmp_path / 'in', tmp_path / 'out')) == 2
    message = f'no image of {tmp_path}/in/val can be decoded'
    assert message in capsys.readouterr().err


def write_bytes_named(root, folders, name=b'%d.png'):
  """Writes three pictures into each folder; all names are bytes."""
  for folder in folders:
    for i in range(3):
      path = os.path.join(os.fsencode(root), folder, name % i)
      write(root, {pathlib.Path(os.fsdecode(path)): encode(noise(i), 'PNG')})
  return root


def test_names_that_are_no_utf8_are_kept(tmp_path):
  root = write_bytes_named(tmp_path / 'in', [b'cat', b'dog'], b'caf\xe9 %d.png')
  assert prepare(arguments('resize', root, tmp_path / 'out')) == 0
  source = tfds_records.tfds_source('photos', 'train', str(tmp_path / 'out'))
  assert source.num_examples == 4


def test_class_names_and_labels_are_given_back(tmp_path):
  """Also those that TFDS would refuse: ImageNet has two cranes."""
  pa = pytest.importorskip('pyarrow')
  pq = pytest.importorskip('pyarrow.parquet')
  names = ['', 'crane', 'crane']
  labels = [i % 3 for i in range(12)]
  table = pa.table(
    {'image': [encode(noise(i)) for i in labels], 'label': labels}
  )
  names_of = {'label': {'names': names, '_type': 'ClassLabel'}}
  info = json.dumps({'info': {'features': names_of}})
  table = table.replace_schema_metadata({'huggingface': info})
  (tmp_path / 'in').mkdir()
  pq.write_table(table, tmp_path / 'in' / 'train-0.parquet')
  line = ['--source', 'parquet', '--path', str(tmp_path / 'in'), '--size', '32']
  line += ['--out', str(tmp_path / 'out'), '--name', 'photos']
  assert prepare(['resize', *line]) == 0
  source = tfds_records.tfds_source('photos', 'train', str(tmp_path / 'out'))
  assert list(source.class_names) == names
  assert sorted(source.read_labels()) == sorted(3 * [0, 1, 2])


def test_class_names_that_tfds_cannot_keep_are_refused_at_once(
  tmp_path, capsys
):
  root = write_bytes_named(tmp_path / 'in', [b'two\nlines', b'dog'])
  assert prepare(arguments('resize', root, tmp_path / 'out')) == 2
  assert 'use `prepare raw`' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()
  assert prepare(arguments('raw', root, tmp_path / 'out')) == 0


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    (['--size', '0'], '0 must lie between 1'),
    (['--path', ''], '--source folder needs --path'),
    (['--path', '/no/such'], '--path: /no/such is no folder'),
    (['--tfds_eval_split', 'test'], 'it is read only with data.source=tfds'),
  ],
)
def test_wrong_arguments_are_refused(photos, tmp_path, capsys, wrong, message):
  try:
    code = prepare([*arguments('raw', photos, tmp_path / 'out'), *wrong])
  except SystemExit as end:  # argparse's way
    code = end.code
  assert code == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('command', ['raw', 'resize'])
def test_the_printed_command_is_one_that_works(
  command, photos, tmp_path, capsys
):
  out = tmp_path / 'a set'
  assert prepare(arguments(command, photos, out)) == 0
  printed = capsys.readouterr().err.splitlines()[-1].split(maxsplit=3)
  assert printed[:3] == ['python', '-m', 'alexnet_jax.main']
  _, recipe, *overrides = shlex.split(printed[3])
  config = validation.load_config([f'--config={recipe}', *overrides])
  assert recipe == 'folder'
  assert (config.data.resize_size, config.data.crop_size) == (64, 56)
  assert build.make_loader(config, 'train').source.num_examples == 95


def test_folders_that_are_in_the_way_are_left_alone(photos, tmp_path, capsys):
  write(tmp_path, {'full/thesis.tex': b'mine', 'busy/.lock': b''})
  with files.lock(tmp_path / 'busy', 'busy'):
    for out, message in (
      (photos, 'lies in the source'),
      (photos / 'new' / 'deep', 'lies in the source'),
      (tmp_path / 'full', 'is not empty'),
      (tmp_path / 'busy', 'another process is preparing'),
    ):
      assert prepare(arguments('raw', photos, out)) == 2
      assert message in capsys.readouterr().err
  assert sorted(path.name for path in photos.iterdir()) == ['cat', 'dog']
  assert (tmp_path / 'full' / 'thesis.tex').read_text() == 'mine'
