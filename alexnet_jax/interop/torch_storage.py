"""Reads tensors out of .safetensors, .pth and .pt; executes nothing in them."""

from collections.abc import Mapping
import os
import pathlib
import pickle
import re
import warnings
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

METADATA_KEY = 'alexnet_jax'
SUFFIXES = ('.safetensors', '.pth', '.pt')
_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
# Of files that hold more than the weights, and of modules around the network
# or a part of it: those of DataParallel and torch.compile.
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')
_MODULES = ('module', '_orig_mod')
# What a file begins with that torch.load takes for a zip.
_ZIP_START = b'PK\x03\x04'
# Of what torch.load says: what it refused, and how letters become bold.
_REFUSED = re.compile(r'\b(?:GLOBAL|class) ([\w.]{1,200})')
_ESCAPES = re.compile(r'\x1b\[[\d;]*m')


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str | None]:
  """The tensors of a file by name, and what `interop.save` says of them.

  Args:
    path: its suffix says of which kind it is.

  Returns:
    ({name: array of any dtype}, the metadata's text or None). The parts of
    names that DataParallel (`module`) and torch.compile (`_orig_mod`) put in
    are taken out, wherever they are.

  Raises:
    UserError: if the file cannot be read, is damaged or of another kind, would
      execute code, or would become larger than it is.
  """
  path = pathlib.Path(path)
  if path.suffix not in SUFFIXES:
    raise UserError(
      f'expected a file that ends in {", ".join(SUFFIXES)}, found'
      f' {path.suffix or "no suffix"!r}'
    )
  try:
    with path.open('rb') as file:
      empty = not file.read(1)
  except OSError as error:
    raise UserError(f'cannot be read: {error.strerror}') from None
  if empty:
    raise UserError('an empty file; get it again')
  if path.suffix == '.safetensors':
    tensors, text = _load_safetensors(path)
  else:
    tensors, text = _load_pickled(path), None
  short = {_unwrapped(name): array for name, array in tensors.items()}
  return short if len(short) == len(tensors) else tensors, text


def _unwrapped(name):
  return '.'.join(part for part in name.split('.') if part not in _MODULES)


def _load_safetensors(path):
  try:
    with safetensors.safe_open(str(path), 'numpy') as file:
      text = (file.metadata() or {}).get(METADATA_KEY)
    records = safetensors.deserialize(path.read_bytes())
  except (safetensors.SafetensorError, OSError) as error:
    hint = ''
    if zipfile.is_zipfile(path):
      hint = '; it is a zip file, as torch.save writes: rename it to .pth'
    raise UserError(
      f'not a complete .safetensors file ({error}){hint or "; get it again"}'
    ) from None
  return {name: _array(name, record) for name, record in records}, text


def _array(name, record):
  if record['dtype'] not in _DTYPES:
    raise UserError(
      f'{name}: expected one of the dtypes {", ".join(_DTYPES)}, found'
      f' {record["dtype"]}'
    )
  array = np.frombuffer(record['data'], _DTYPES[record['dtype']])
  return array.reshape(record['shape'])


def _load_pickled(path):
  _refuse_expanding_zip(path)
  try:
    import torch
  except ImportError:
    raise UserError(
      f'a {path.suffix} file needs PyTorch to be read safely:'
      f' {how_to_install("interop")}, or convert the file to .safetensors'
    ) from None
  try:
    with warnings.catch_warnings():
      # It warns of old protocols before it reads or refuses the file.
      warnings.simplefilter('ignore')
      # Without weights_only it would execute what the file says.
      contents = torch.load(path, weights_only=True, map_location='cpu')
  except pickle.UnpicklingError as error:
    refused = _REFUSED.search(str(error))
    named = f' (it asks for {refused[1]})' if refused else ''
    raise UserError(
      'PyTorch refuses to read it as plain tensors; it is damaged, holds a'
      ' whole module instead of its state_dict(), or would execute'
      f' code{named}. Save it with torch.save(network.state_dict(), ...)'
    ) from None
  except Exception as error:  # of zip files and old formats: anything
    raise UserError(
      'damaged, or not a file of torch.save'
      f' ({type(error).__name__}: {_short(str(error))})'
    ) from None
  tensors = _state_dict(contents, torch)
  _refuse_expanding_tensors(tensors, path.stat().st_size)
  return {name: _numpy(name, tensor, torch) for name, tensor in tensors.items()}


def _refuse_expanding_zip(path):
  """A few bytes of a zip can stand for many, before anything looks at them."""
  with path.open('rb') as file:
    if file.read(len(_ZIP_START)) != _ZIP_START:
      return
  try:
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
  except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
    raise UserError(f'a damaged zip file ({error}); get it again') from None
  for entry in entries:
    if entry.compress_type != zipfile.ZIP_STORED:
      raise UserError(
        f'its entry {entry.filename} is compressed; expected a file as'
        ' torch.save writes it, which compresses nothing'
      )
  total, size = sum(e.file_size for e in entries), path.stat().st_size
  if total > size:
    raise UserError(
      f'its entries have {total:,} bytes, but the file {size:,}: they overlap;'
      ' expected a file as torch.save writes it'
    )


def _short(text):
  """The first line."""
  lines = _ESCAPES.sub('', text).strip().splitlines()
  return lines[0][:200] if lines else ''


def _state_dict(contents, torch):
  for key in _WRAPPERS:
    if isinstance(contents, Mapping) and isinstance(contents.get(key), Mapping):
      contents = contents[key]
  if not isinstance(contents, Mapping):
    raise UserError(
      f'expected a state dict {{name: tensor}}, found {type(contents).__name__}'
    )
  others = [
    f'{key} ({type(value).__name__})'
    for key, value in contents.items()
    if not (isinstance(key, str) and isinstance(value, torch.Tensor))
  ]
  if others:
    raise UserError(
      'expected a state dict {name: tensor}, or one under'
      f' {" or ".join(_WRAPPERS)}; found {", ".join(others[:10])}'
    )
  for name, tensor in contents.items():
    if tensor.layout != torch.strided or tensor.is_quantized:
      raise UserError(f'{name}: expected a plain tensor, found {tensor.layout}')
  return dict(contents)


def _refuse_expanding_tensors(tensors, file_size):
  """Names may share numbers, and tensors be parts of others; never more."""
  storages = {}
  for name, tensor in tensors.items():
    storage = tensor.untyped_storage()
    wanted, there = tensor.numel() * tensor.itemsize, storage.nbytes()
    if wanted > there:
      raise UserError(
        f'{name}: its shape {list(tensor.shape)} takes {wanted:,} bytes, of'
        f' which the file has {there:,}: it repeats them (expand); save it'
        ' after .contiguous()'
      )
    storages[storage.data_ptr()] = there
  if (total := sum(storages.values())) > file_size:
    raise UserError(
      f'its tensors have {total:,} bytes, but the file {file_size:,}; expected'
      ' a file as torch.save writes it'
    )


def _numpy(name, tensor, torch):
  """Without a copy: many names may share the same numbers."""
  tensor = tensor.detach()
  try:
    if tensor.dtype == torch.bfloat16:  # numpy alone has none
      return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
  except (TypeError, RuntimeError) as error:
    raise UserError(f'{name}: {error}') from None
