"""Files of the wrong kind, damaged or hostile, through the commands."""

import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax.interop import load, save
from tests.interop import test_caffe
from tests.system import commands

OPTIONS = {
  'torch': ('--from torch --network marvin', 'net.pth'),
  'safetensors': ('--from torch --network marvin', 'net.safetensors'),
  'keras': ('--from keras --network marvin', 'net.weights.h5'),
  'caffe': ('--from caffe', 'net.caffemodel'),
}


def zipped(**files):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(f'archive/{name}', content)
  return buffer.getvalue()


def safetensors_file(length=None, size=4, **tensor):
  """A file with one tensor, whose header may lie."""
  entry = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, size]} | tensor
  header = json.dumps({'x': entry}).encode()
  length = len(header) if length is None else length
  return struct.pack('<Q', length) + header + bytes(size)


class Code:
  """Makes a folder where a pickle of it is read."""

  def __reduce__(self):
    return os.mkdir, ('executed',)


NUMBERS = {'conv.weight': np.ones((3, 3), np.float32)}
PICKLE = {'data.pkl': pickle.dumps({}, 2), 'version': b'3\n'}
# Nothing of this is a network for any of the readers.
FILES = {
  'empty': b'',
  'text': b'name: "AlexNet"\nlayer {\n',
  'noise': np.random.default_rng(0).bytes(5000),
  'zip bomb': zipped(**PICKLE, **{'data/0': bytes(10**7)}),
  'pickle with code': pickle.dumps({'a': Code()}, 2),
  'HDF5 and noise': b'\x89HDF\r\n\x1a\n' + np.random.default_rng(1).bytes(4000),
  'tensors of another network': safetensors.numpy.save(NUMBERS),
  'no tensors': safetensors.numpy.save({}),
  'endless header': safetensors_file(2**62),
  'tensor behind the end': safetensors_file(data_offsets=[0, 400], shape=[100]),
  'tensor without numbers': safetensors_file(
    size=0, shape=[2**62, 0], data_offsets=[0, 0]
  ),
  'tensor of 8 bits': safetensors_file(dtype='F8_E4M3', shape=[4]),
  'cut caffemodel': test_caffe.file_by_hand(test_caffe.network())[:3000],
}


@pytest.mark.parametrize('kind', OPTIONS)
@pytest.mark.parametrize(
  'name', [*FILES, 'folder', 'nothing', 'secret', 'pipe', '/dev/zero']
)
def test_is_refused(name, kind, tmp_path, ask, monkeypatch):
  if kind == 'torch':
    pytest.importorskip('torch')
  if kind == 'keras':
    pytest.importorskip('h5py')
  monkeypatch.chdir(tmp_path)
  options, file = OPTIONS[kind]
  path = pathlib.Path(file)
  if name == 'folder':
    path.mkdir()
  elif name == 'pipe':
    os.mkfifo(path)
  elif name == '/dev/zero':
    path.symlink_to(name)
  elif name != 'nothing':
    path.write_bytes(FILES.get(name, b'secret'))
  if name == 'secret':
    path.chmod(0)
    if os.access(path, os.R_OK):
      pytest.skip('root reads everything')
  there = [*pathlib.Path().iterdir()]
  code, result, err = ask(load, f'{options} {path} --workdir run')
  assert (code, result) == (2, None), err
  assert err.splitlines()[-1].startswith('error: ') or 'MISFIT' in err
  assert f'error: {file}' in err
  assert [*pathlib.Path().iterdir()] == there


# What happens to the mean of a run before somebody saves it.
MEANS = {
  'none': lambda file: file.unlink(),
  'cut': lambda file: file.write_bytes(file.read_bytes()[:900]),
  'no number': lambda file: np.savez(
    file, mean=np.full((28, 28, 3), np.nan), of='train'
  ),
}


# Of numpy, which leaves the file open.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('name', MEANS)
def test_a_run_without_its_mean_is_refused(name, trained_run, tmp_path, ask):
  run = shutil.copytree(trained_run, tmp_path / 'run')
  MEANS[name](run / 'pixel_mean.npz')
  answer = ask(save, f'--workdir {run} {tmp_path}/a.safetensors')
  assert str(run) in commands.refused(answer, 'pixel_mean.npz')
  assert list(tmp_path.iterdir()) == [run]
