import concurrent.futures
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alexnet_jax.data import parquet, sources
from alexnet_jax.errors import UserError
from tests.data.pictures import contents, image_file

NAMES = ['crane', 'dog', 'maillot']
STRUCT = pa.struct([('bytes', pa.binary()), ('path', pa.string())])


def make_rows(count, first=0):
  """[(image, label)]"""
  return [(image_file(i), i % 3) for i in range(first, first + count)]


def hub_metadata(label='label', names=NAMES):
  """What the library `datasets` writes into the schema."""
  features = {
    'image': {'_type': 'Image'},
    label: {'names': names, '_type': 'ClassLabel'},
  }
  return {b'huggingface': json.dumps({'info': {'features': features}}).encode()}


def write(path, rows, *, kind=None, label_kind=None, **options):
  """Writes one file; `kind` None makes the hub's structs."""
  contents = [content for content, _ in rows]
  if kind is None:
    contents = [
      {'bytes': c, 'path': f'{i}.png'} for i, c in enumerate(contents)
    ]
  columns = {
    options.get('image', 'image'): pa.array(contents, kind or STRUCT),
    options.get('label', 'label'): pa.array([v for _, v in rows], label_kind),
    'width': pa.array(range(len(rows))),
  }
  table = pa.table(columns).replace_schema_metadata(options.get('metadata'))
  for column in options.get('copies', ()):
    table = table.append_column(column, table[column])
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(table, path, row_group_size=4)
  return path


def write_hub(root, train, validation=(), **options):
  """The names of files are those of the hub; some hold less than others."""
  options = {'metadata': hub_metadata(), 'label_kind': pa.int64(), **options}
  parts = train[:5], [], train[5:]
  for i, part in enumerate(parts):
    write(root / f'train-{i:05d}-of-00003.parquet', part, **options)
  if validation:
    write(root / 'validation-00000-of-00001.parquet', validation, **options)


def open_split(path, split='train', **options):
  return sources.make_source('parquet', split, path=str(path), **options)


def test_every_row_is_what_was_written(tmp_path):
  train, validation = make_rows(21), make_rows(7, first=100)
  write_hub(tmp_path / 'data', train, validation)
  for split, rows in zip(sources.SPLITS, (train, validation), strict=True):
    source = open_split(tmp_path, split)
    assert source.num_examples == len(rows)
    assert contents(source) == rows
    assert type(source.read(0)[0]) is bytes
    assert type(source.read(0)[1]) is int
    assert source.class_names == tuple(NAMES)
    assert source.name == f'{tmp_path} {split}'
  described = open_split(tmp_path).describe(5 + 4 + 2)
  assert described.endswith('train-00002-of-00003.parquet row group 1, row 2')


@pytest.mark.parametrize(
  'options',
  [
    {'label': 'fine_label', 'kind': pa.binary()},
    {'image': 'img', 'kind': pa.dictionary(pa.int32(), pa.binary())},
    {'label_kind': pa.dictionary(pa.int8(), pa.int16())},
  ],
)
def test_kinds_of_columns(tmp_path, options):
  rows = make_rows(9)
  metadata = hub_metadata(options.get('label', 'label'))
  write(tmp_path / 'train.parquet', rows, metadata=metadata, **options)
  source = open_split(tmp_path, val_fraction=0.0)
  assert contents(source) == rows
  assert source.class_names == tuple(NAMES)


@pytest.mark.parametrize(
  'label_kind', [pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_string_labels_are_sorted(tmp_path, label_kind):
  names = ['zebra', 'ant', 'élan']
  rows = [(content, names[label]) for content, label in make_rows(12)]
  write_hub(tmp_path, rows, rows[1:6], label_kind=label_kind, metadata=None)
  expected = ['ant', 'zebra', 'élan']
  for split, part in zip(sources.SPLITS, (rows, rows[1:6]), strict=True):
    source = open_split(tmp_path, split)
    assert source.class_names == tuple(expected)
    assert contents(source) == [(c, expected.index(name)) for c, name in part]


@pytest.mark.parametrize('cache', [30_000, 1 << 28])
def test_eight_threads_at_once(tmp_path, monkeypatch, cache):
  monkeypatch.setattr(parquet, '_CACHE_BYTES', cache)
  rows = make_rows(60)
  write_hub(tmp_path, rows, rows[:3])
  source = open_split(tmp_path)

  def read_all(seed):
    order = np.random.default_rng(seed).permutation(source.num_examples)
    return all(source.read(i) == rows[i] for i in order)

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert all(pool.map(read_all, range(8)))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'image': 'photo'}, r"columns \['photo'.*one must be named image or img"),
    ({'kind': pa.struct([('path', pa.string())])}, 'it has no bytes'),
    ({'copies': ['label']}, "'width', 'label'.*one must be named label"),
  ],
)
def test_columns_that_do_not_fit(tmp_path, options, message):
  rows = make_rows(6)
  if 'kind' in options:
    rows = [({'path': 'a.jpg'}, label) for _, label in rows]
  write(tmp_path / 'train.parquet', rows, **options)
  with pytest.raises(UserError, match=message) as info:
    open_split(tmp_path)
  assert 'train.parquet' in str(info.value)


def test_rows_without_bytes(tmp_path):
  images = [{'bytes': c, 'path': None} for c, _ in make_rows(6)]
  images[4] = {'bytes': None, 'path': 'http://example.org/a.jpg'}
  rows = [(image, i % 2) for i, image in enumerate(images)]
  write(tmp_path / 'train.parquet', rows, kind=STRUCT)
  write(tmp_path / 'val.parquet', rows, kind=STRUCT)
  with pytest.raises(UserError, match='no bytes of an image') as info:
    open_split(tmp_path).read(4)
  assert 'train.parquet row group 1, row 0' in str(info.value)


@pytest.mark.parametrize(
  ('labels', 'message'),
  [
    ([0, 1, -1], "label '-1', which.*without labels"),
    ([0, 1, None], '1 rows have no label'),
    ([0, 1, 1 << 40], f"label '{1 << 40}'"),
    ([[0], [1], [1, 2]], 'neither whole numbers nor text'),
  ],
)
def test_labels_that_do_not_fit(tmp_path, labels, message):
  rows = [(image_file(0), label) for label in labels]
  write(tmp_path / 'train.parquet', rows)
  with pytest.raises(UserError, match=message):
    open_split(tmp_path)


def test_metadata_without_names(tmp_path):
  metadata = {b'huggingface': b'[]'}
  write(tmp_path / 'train.parquet', make_rows(9), metadata=metadata)
  assert open_split(tmp_path).class_names == ('0', '1', '2')
  fewer = hub_metadata(names=NAMES[:2])
  write(tmp_path / 'train.parquet', make_rows(6), metadata=fewer)
  with pytest.raises(UserError, match='label 2, but 2 classes'):
    open_split(tmp_path)


ROWS = make_rows(6)
TEXTS = [(content, f'class{label}') for content, label in ROWS]
HUB = {'metadata': hub_metadata()}


@pytest.mark.parametrize(
  ('train', 'val', 'options', 'message'),
  [
    (TEXTS[:2], TEXTS, {}, r"training lacks: \['class2'\]"),
    (TEXTS, ROWS, {}, 'differ in the kind of labels'),
    (
      ROWS,
      ROWS,
      {'metadata': hub_metadata(names=['crane', 'Dog'])},
      "classes: 'dog' and 'Dog', 'maillot' and None",
    ),
  ],
)
def test_validation_that_does_not_fit(tmp_path, train, val, options, message):
  write(tmp_path / 'train.parquet', train, **(HUB if options else {}))
  write(tmp_path / 'val.parquet', val, **options)
  open_split(tmp_path)
  with pytest.raises(UserError, match=message):
    open_split(tmp_path, 'validation')


def test_one_accent_in_two_spellings_is_one_class(tmp_path):
  rows = [(content, ['a', 'b', 'é'][label]) for content, label in make_rows(6)]
  write(tmp_path / 'train.parquet', rows)
  other = [(content, name.replace('é', 'e\u0301')) for content, name in rows]
  write(tmp_path / 'val.parquet', other)
  assert contents(open_split(tmp_path, 'validation')) == make_rows(6)
  write(tmp_path / 'train.parquet', rows + other)
  with pytest.raises(UserError, match=r'two spellings of Unicode'):
    open_split(tmp_path)


def test_damaged_files_are_named(tmp_path):
  path = write(tmp_path / 'train.parquet', make_rows(6))
  whole = path.read_bytes()
  path.write_bytes(whole[:4] + bytes(200) + whole[204:])
  with pytest.raises(UserError, match=r'cannot read row group 0 of .*parquet'):
    open_split(tmp_path, val_fraction=0.0).read(0)
  for size in (0, 100, len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match=r'train\.parquet is truncated'):
      open_split(tmp_path)


def test_without_pyarrow_the_command_is_named(tmp_path, monkeypatch):
  write(tmp_path / 'train.parquet', make_rows(6))
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(UserError, match=r'pip install .*\[parquet\]'):
    open_split(tmp_path)
