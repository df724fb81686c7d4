"""The same photographs as a data set of every kind."""

import pytest

from alexnet_jax.data.prepare.__main__ import main as prepare
from tests.data.pictures import photographs, write_set


@pytest.fixture(scope='session')
def sets(tmp_path_factory):
  """{kind: arguments of make_source} of the photographs; not to be changed.

  Of raw and TFDS sets a part is held out for validation; they have squares or
  short sides of 64 pixels, at most 7 examples a file.
  """
  root = tmp_path_factory.mktemp('sets')
  found = {}
  for kind in ('folder', 'tar', 'parquet'):
    path = write_set(root / f'my {kind}', kind, 'all', photographs())
    found[kind] = {'source': kind, 'path': str(path)}
  found['tfds'] = {
    'source': 'tfds',
    'path': str(root / 'tfds'),
    'tfds_name': 'my_folder',
  }
  for command, source, out, *options in (
    ('resize', 'folder', 'tfds'),
    ('raw', 'folder', 'raw'),
    ('raw', 'folder', 'raw_gray', '--channels=1'),
    ('raw', 'tfds', 'raw_of_tfds'),
  ):
    options += [f'--{flag}={value}' for flag, value in found[source].items()]
    options += [f'--out={root / out}', '--size=64', '--shard_examples=7']
    assert prepare([command, *options]) == 0
    found.setdefault(out, {'source': 'raw', 'path': str(root / out)})
  found['tfds']['tfds_split'] = 'train'
  return found
