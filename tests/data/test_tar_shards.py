import gzip
import os
import tarfile

import numpy as np
import pytest
import webdataset
from webdataset import tariterators

from alexnet_jax.data import sources, tar_shards
from alexnet_jax.errors import UserError
from tests.data.pictures import contents, image_file, Runs, tar_of, write


def write_shards(root, first=0):
  """20 samples by WebDataset's own writer; keys have folders, as ImageNet's."""
  pattern = str(root / 'train-%06d.tar')
  with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
    for i in range(first, first + 20):
      key = f'n{i % 3:02d}/img_{i:05d}'
      writer.write({'__key__': key, 'png': image_file(i), 'cls': i % 3})


def write_tar(path, files, **options):
  """Writes (name, bytes) in that order; returns the path."""
  return write(path.parent, {path.name: tar_of(files, **options)}) / path.name


def two_classes(extra=()):
  """The files of four good samples, and others."""
  files = []
  for i in range(4):
    files.append((f'{i:03d}.jpg', image_file(i, 'JPEG')))
    files.append((f'{i:03d}.cls', str(i % 2).encode()))
  return [*files, *extra]


def open_split(path, split='train', **options):
  return sources.make_source('tar', split, path=str(path), **options)


def test_webdataset_reads_the_same(tmp_path, caplog):
  """The oracle of what belongs together, on names with several dots."""
  files = []
  for i in range(6):
    folder = './v1.5/' if i % 2 else ''
    key = f'{folder}photo{i}'
    files += [
      (f'{key}.mask.png', b'mask'),
      (f'{key}.JPG', image_file(i, 'JPEG')),
      (f'{key}.cls', f'{i % 2}\n'.encode()),
      (f'{key}.txt', b'a caption'),
    ]
  files += [('README', b'x'), ('._000.jpg', b'of macOS')]
  path = write_tar(tmp_path / 'train-0.tar', files)
  with path.open('rb') as file:
    found = [
      {**entry, '__url__': str(path)}
      for entry in tariterators.tar_file_iterator(file)
    ]
  theirs = [
    (sample['jpg'], int(sample['cls']))
    for sample in tariterators.group_by_keys(found)
    if 'cls' in sample
  ]
  assert contents(open_split(tmp_path, val_fraction=0.0)) == theirs
  assert len(theirs) == 6
  assert '14 files that are neither' in caplog.text
  assert 'the first: photo0.mask.png' in caplog.text


def test_labels_in_json(tmp_path):
  labels = [
    ('a.json', b'{"label": 1, "cls": 5, "caption": "x"}'),
    ('b.json', b'{"cls": 2}'),
    ('c.json', b'{"label": "0"}'),
    ('d.json', b'{"label": 9}'),  # the .cls counts
    ('d.cls', b' 3 '),
  ]
  images = [(f'{key}.webp', image_file(0, 'WEBP')) for key in 'abcd']
  write_tar(tmp_path / 'train.tar', images + labels)
  source = open_split(tmp_path, val_fraction=0.0)
  assert source.labels.tolist() == [1, 2, 0, 3]


def test_class_names_from_a_file(tmp_path, caplog):
  write_tar(tmp_path / 'train.tar', two_classes())
  (tmp_path / 'classes.txt').write_text('cat\ndog \nsea lion\n\n')
  assert open_split(tmp_path).class_names == ('cat', 'dog', 'sea lion')
  assert '1 of 3 classes have no training example' in caplog.text
  assert 'the first: sea lion (number 2)' in caplog.text


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'cat\n', 'label 1, but 1 classes'),
    (b'cat\n\ndog\n', 'empty line 2'),
    (b'cat\n\xff\xfe\n', 'no UTF-8'),
  ],
)
def test_class_files_that_do_not_fit(tmp_path, text, message):
  write_tar(tmp_path / 'train.tar', two_classes())
  (tmp_path / 'classes.txt').write_bytes(text)
  with pytest.raises(UserError, match=message):
    open_split(tmp_path)


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """20 samples in shards, whose index is kept, and how often they were read."""
  monkeypatch.setattr(tar_shards, '_LARGE', 1)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  write_shards(tmp_path)
  calls = []
  index = tar_shards._index_shards

  def counted(*arguments):
    calls.append(arguments)
    return index(*arguments)

  monkeypatch.setattr(tar_shards, '_index_shards', counted)
  return calls


def reopen(path):
  """As another process does."""
  tar_shards._indexed.cache_clear()
  return open_split(path)


def test_the_index_is_kept_until_a_shard_changes(tmp_path, kept):
  first = reopen(tmp_path)
  assert contents(open_split(tmp_path, 'validation'))  # from memory
  again = reopen(tmp_path)
  assert len(kept) == 1
  assert contents(first) == contents(again)
  assert first.fingerprint == again.fingerprint
  assert not list(tmp_path.glob('*index*'))
  shard = tmp_path / 'train-000002.tar'
  os.utime(shard, ns=(1, 1))  # the time alone: another index, the same data
  assert reopen(tmp_path).fingerprint == first.fingerprint
  assert len(kept) == 2
  write_shards(tmp_path, first=50)
  assert reopen(tmp_path).fingerprint != first.fingerprint
  assert len(kept) == 3


def second(field, value):
  def change(samples):
    samples[field][1] = value
    return samples

  return change


@pytest.mark.parametrize(
  'damage',
  [
    second('shard', 5),
    second('offset', 1 << 40),
    second('size', -1),
    second('label', -1),
    lambda samples: samples[:, None],
    lambda samples: samples['offset'],
    lambda samples: np.array([Runs()], object),
    None,
  ],
)
def test_a_damaged_index_is_made_anew(tmp_path, kept, damage):
  before = contents(reopen(tmp_path))
  (path,) = tmp_path.glob('cache/alexnet_jax/tar_indexes/*.npy')
  if damage:
    np.save(path, damage(np.load(path)))
  else:
    path.write_bytes(b'no array')
  assert contents(reopen(tmp_path)) == before
  assert len(kept) == 2


def test_an_index_that_cannot_be_written(tmp_path, kept, caplog):
  (tmp_path / 'cache').touch()
  assert contents(reopen(tmp_path))
  assert 'cannot be kept' in caplog.text


def test_a_tar_that_is_cut_off_or_damaged_is_refused(tmp_path):
  path = write_tar(tmp_path / 'train.tar', two_classes())
  whole = path.read_bytes()
  with tarfile.open(path) as tar:
    members = tar.getmembers()
  end = members[-1].offset_data + 512
  for size in [0, 1, *range(128, end + 512, 384)]:
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match=r'train\.tar (is truncated|sample)'):
      open_split(tmp_path)
  path.write_bytes(whole[: end + 512])
  assert open_split(tmp_path).num_examples == 2
  offset = members[4].offset
  path.write_bytes(whole[:offset] + b'~' + whole[offset + 1 :])
  with pytest.raises(UserError, match=f'no end of the tar at byte {offset}'):
    open_split(tmp_path)


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({'jpg': b'x'}, r"sample x has \['jpg'\], not an image and a label"),
    ({'jpg': b'x', 'png': b'x', 'cls': b'1'}, r"\['cls', 'jpg', 'png'\]"),
    ({'jpg': b'x', 'cls': b'cat'}, "label 'cat'"),
    ({'jpg': b'x', 'cls': b'-1'}, "label '-1'.*without labels"),
    ({'jpg': b'x', 'cls': b'9' * 9}, 'label 999999999, but 1000000 classes'),
    ({'jpg': b'x', 'cls': b'9' * 12}, "label '999999999999'"),
    ({'jpg': b'x', 'json': b'{"label": true}'}, "label 'True'"),
    ({'jpg': b'x', 'json': b'[1]'}, "json without a 'label' or 'cls'"),
    ({'jpg': b'x', 'json': b'[' * 100_000}, "json without a 'label'"),
    ({'jpg': b'x', 'JPG': b'x'}, "file 'x.JPG' twice"),
  ],
)
def test_samples_that_do_not_fit(tmp_path, files, message):
  extra = [(f'x.{ending}', content) for ending, content in files.items()]
  write_tar(tmp_path / 'train.tar', two_classes(extra))
  with pytest.raises(UserError, match=message) as info:
    open_split(tmp_path)
  assert str(tmp_path) in str(info.value)


@pytest.mark.parametrize('kind', [tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_and_sparse_files_are_refused(tmp_path, kind):
  path = write_tar(tmp_path / 'train.tar', two_classes())
  content = bytearray(path.read_bytes())
  content[156:157] = kind
  content[148:156] = b' ' * 8
  content[148:156] = b'%06o\0 ' % sum(content[:512])
  path.write_bytes(content)
  with pytest.raises(UserError, match='is a link or sparse file'):
    open_split(tmp_path)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (tar_of(two_classes()) * 2, 'keep tars apart'),
    # ImageNet's own, a tar of tars.
    (tar_of([('n01.tar', b'x')]), 'no samples .*n01.tar'),
    (gzip.compress(tar_of(two_classes())), 'no plain uncompressed tar'),
  ],
)
def test_other_kinds_of_tar_are_refused(tmp_path, content, message):
  write(tmp_path, {'train.tar': content})
  with pytest.raises(UserError, match=message):
    open_split(tmp_path)


@pytest.mark.parametrize('ending', ['tar.gz', 'tgz'])
def test_compressed_shards_are_refused(tmp_path, ending):
  path = write_tar(tmp_path / 'train-0.tar', two_classes())
  packed = tmp_path / f'train-0.{ending}'
  packed.write_bytes(gzip.compress(path.read_bytes()))
  write(tmp_path, {'notes.txt.gz': b'', 'train-0.tar.json': b''})
  open_split(tmp_path)  # gunzip --keep leaves both
  packed.rename(tmp_path / f'val-0.{ending}')
  with pytest.raises(UserError, match=rf'val-0\.{ending} is compressed; unc'):
    open_split(tmp_path)
