"""Files of a few bytes that stand for many, and those that share numbers."""

import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.interop import torch_storage

torch = pytest.importorskip('torch')

pytestmark = pytest.mark.interop


@pytest.fixture
def loaded(tmp_path):
  """What is read of a file that torch.save wrote and `change` rewrote."""

  def load(state, change=None, **options):
    path = tmp_path / 'weights.pth'
    torch.save(state, path, **options)
    if change:
      change(path)
    return torch_storage.load(path)[0]

  return load


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((10**6, 61), r'takes 244,000,000 bytes, of which the file has 4'),
    ((10**7, 4096), r'takes 163,840,000,000 bytes, of which the file has 4'),
  ],
)
def test_expanded_tensors_are_refused(shape, message, zipped, loaded):
  state = {'classifier.6.weight': torch.zeros(1).expand(*shape)}
  with pytest.raises(UserError, match=rf'classifier\.6\.weight: .*{message}'):
    loaded(state, _use_new_zipfile_serialization=zipped)


def test_overlapping_rows_are_refused(loaded):
  rows = torch.zeros(2000).as_strided((1000, 1000), (1, 1))
  with pytest.raises(
    UserError, match=r'takes 4,000,000 bytes, of which .*8,000'
  ):
    loaded({'w': rows})


def rewritten(path, method):
  """The same entries, stored by another method."""
  with zipfile.ZipFile(path) as archive:
    contents = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, 'w', method) as archive:
    for name, content in contents.items():
      archive.writestr(name, content)


@pytest.mark.parametrize(
  'method', [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_compressed_entries_are_refused(method, loaded):
  state = {'w': torch.zeros(10**6)}
  assert loaded(state, lambda p: rewritten(p, zipfile.ZIP_STORED))['w'].size
  with pytest.raises(UserError, match=r'entry .* is compressed; expected'):
    loaded(state, lambda path: rewritten(path, method))


def overlapping(path):
  """Every entry is the largest one, which is in the file once."""
  with zipfile.ZipFile(path, 'a') as archive:
    largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    for number in range(50):
      copy = zipfile.ZipInfo(f'weights/data/{number + 1}')
      for name in ('header_offset', 'CRC', 'compress_size', 'file_size'):
        setattr(copy, name, getattr(largest, name))
      archive.filelist.append(copy)
      archive.NameToInfo[copy.filename] = copy
    archive._didModify = True


def test_overlapping_entries_are_refused(loaded):
  with pytest.raises(UserError, match=r'its entries have .*: they overlap'):
    loaded({'w': torch.zeros(10**5)}, overlapping)


def claiming(path):
  """A file of before zips whose numbers are said to be many, and missing."""
  content = path.read_bytes()
  many = b'J' + struct.pack('<i', 10**9)
  assert content.count(b'K\x05N') == content.count(b'K\x05\x85') == 1
  content = content.replace(b'K\x05N', many + b'N')
  content = content.replace(b'K\x05\x85', many + b'\x85')
  path.write_bytes(content[: content.rindex(b'\x80\x02]')] + b'\x80\x02].')


def test_numbers_that_are_not_in_the_file_are_refused(loaded):
  options = {'_use_new_zipfile_serialization': False}
  state = {'w': torch.arange(5.0)}
  assert loaded(state, **options)['w'].tolist() == [0, 1, 2, 3, 4]
  with pytest.raises(UserError, match='have 4,000,000,000 bytes, but the file'):
    loaded(state, claiming, **options)


def test_a_zip_without_its_end_is_refused(loaded):
  def cut(path):
    path.write_bytes(path.read_bytes()[:-100])

  with pytest.raises(UserError, match=r'^a damaged zip file'):
    loaded({'w': torch.zeros(5)}, cut)


@pytest.mark.parametrize('zipped', [True, False])
def test_shared_numbers_and_parts_come_in(zipped, loaded):
  whole = torch.arange(24.0).reshape(4, 6)
  tensors = {
    'embedding': whole,
    'tied': whole,
    'part': whole[1:3, ::2],
    'turned': whole.T,
    'row': whole[0].expand(1, 6),
    'short': whole.bfloat16().T,
    'parameter': torch.nn.Parameter(whole + 1),
    'none': torch.zeros(2**40, 0),
  }
  found = loaded(tensors, _use_new_zipfile_serialization=zipped)
  assert found.keys() == tensors.keys()
  for name, tensor in tensors.items():
    expected = tensor.detach().float().numpy()
    np.testing.assert_array_equal(found[name].astype(np.float32), expected)
  assert found['short'].dtype == ml_dtypes.bfloat16


def test_many_names_of_the_same_numbers_take_no_more_room(loaded):
  """20 GB, were they copied."""
  shared = torch.ones(1000, 1000, dtype=torch.bfloat16)
  found = loaded({f'{number}': shared for number in range(10**4)})
  assert len({array.ctypes.data for array in found.values()}) == 1


def test_names_lose_what_wrappers_put_in(loaded):
  names = {
    'features.module.0.weight': 'features.0.weight',
    'module._orig_mod.fc.bias': 'fc.bias',
    '_orig_mod.head.module.weight': 'head.weight',
    'modules.0.weight': 'modules.0.weight',
  }
  found = loaded({name: torch.zeros(1) for name in names})
  assert list(found) == list(names.values())
  # Unless two became one.
  both = {'module.w': torch.zeros(1), 'w': torch.ones(1)}
  assert loaded(both).keys() == both.keys()
