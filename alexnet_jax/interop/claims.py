"""Claims of saved weights: how they were made, and what they reach."""

from collections.abc import Mapping
import hashlib
import json
import pathlib

import numpy as np

from alexnet_jax import __version__, files, validation
from alexnet_jax.config import MONITORS
from alexnet_jax.errors import UserError
from alexnet_jax.interop.networks import TrainedNetwork

WEIGHTS = 'model.safetensors'  # the files of a folder
_CONFIG, _CARD = 'config.json', 'README.md'
_DATA = ('fingerprint', 'num_examples', 'eval_fingerprint', 'eval_num_examples')
_MEASURES = {*MONITORS, *(m.replace('macro', 'micro') for m in MONITORS)}
_SHAPE = {  # of the claims, JSON in the metadata of the file
  'version': str,  # of this package
  'command': str,  # that trains so
  'step': int,  # number of updates
  'config': dict,  # without the paths of the machine
  'data': dict,  # fingerprints and numbers of examples of both splits
  'measured': {str: float},  # {eval/top1: ..., ...}, if at this step
  'tensors': {str: str},  # SHA-256 of the bytes
}


def of_run(run) -> dict:
  """Returns the claims of a `checkpoint.OpenRun`, without `tensors`."""
  progress, data = run.saved.progress, run.saved.data
  step = int(run.state.step)
  measured = progress.last_evaluation if progress.evaluated_step == step else {}
  config = run.config.copy_and_resolve_references()
  # Where they lie on this machine says nothing elsewhere.
  config.data.path = 'DATA' if config.data.path else ''
  config.init.workdir = pathlib.Path(config.init.workdir).name
  return {
    'version': __version__,
    'command': '' if run.saved.imported else validation.command_of(config),
    'step': step,
    'config': config.to_dict(),
    'data': {} if run.saved.imported else {k: getattr(data, k) for k in _DATA},
    'measured': measured,
  }


def digests(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Returns {name: SHA-256 of the bytes} of contiguous arrays."""
  return {
    name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    for name, array in tensors.items()
  }


def check(claims: Mapping, tensors: Mapping[str, np.ndarray]) -> None:
  """Raises UserError if claims are damaged, or the tensors are others."""
  if wrong := files.misfit(claims, _SHAPE, 'its claims'):
    raise UserError(wrong)
  counts = [v for k, v in claims['data'].items() if k.endswith('examples')]
  texts = claims['version'], claims['command']
  if not (
    claims['data'].keys() <= {*_DATA}
    and claims['measured'].keys() <= _MEASURES
    and all(isinstance(count, int) for count in counts)
    and all(map(str.isprintable, texts))
  ):
    raise UserError('its claims are none that interop.save writes')
  changes = files.differences(claims['tensors'], digests(tensors))
  if changes:
    raise UserError(
      f'{len(changes)} tensors are not those that were saved, the first:'
      f' {next(iter(changes))}; get the file again'
    )


def write_folder(folder: pathlib.Path, network: TrainedNetwork) -> None:
  """Writes what a model hub shows beside the weights: config and model card."""
  for name, text in _texts(folder, network).items():
    (folder / name).write_text(text, 'utf-8')


def check_folder(folder: pathlib.Path, network: TrainedNetwork) -> None:
  """Raises UserError if a folder says something else; a card may say more."""
  texts = _texts(folder, network)
  table = _table(network.claims)
  for name, wanted in ((_CONFIG, texts[_CONFIG]), (_CARD, table)):
    path = folder / name
    files.refuse_special_file(path)
    text = path.read_bytes().decode(errors='replace') if path.exists() else ''
    if wanted not in text or (name == _CONFIG and wanted != text):
      raise UserError(
        f'{path} does not say what {WEIGHTS} says; the figures of that are\n'
        + table
      )


def _table(claims):
  lines = ['| measure | value |', '|---|---|', f'| step | {claims["step"]:,} |']
  count = claims['data'].get('eval_num_examples', 0)
  lines += [f'| validation images | {count:,} |']
  lines += [f'| {k} | {v:.4f} |' for k, v in sorted(claims['measured'].items())]
  return '\n'.join(lines) + '\n'


def _origin(claims):
  if not claims['command']:
    return 'Weights of another framework, converted.'
  measured = '\n\nand measured on the center crops of its validation split:'
  return f'Trained with\n\n    {claims["command"]}' + measured * bool(
    claims['measured']
  )


def _texts(folder, network):
  """Returns {name: text} of both files; the weights are there."""
  claims = network.claims
  with (folder / WEIGHTS).open('rb') as file:
    sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
  said = {k: v for k, v in claims.items() if k != 'tensors'}
  size = network.data['crop_size']
  about = {
    'library_name': 'alexnet_jax',
    'architecture': 'AlexNet',
    'num_classes': network.num_classes,
    'id2label': dict(enumerate(network.class_names)),
    'input_size': [network.data['channels'], size, size],
    'resize_size': network.data['resize_size'],
    'sha256': {WEIGHTS: sha256},
    **said,
  }
  card = f"""\
---
library_name: alexnet_jax
pipeline_tag: image-classification
tags: [alexnet, jax]
---
# An AlexNet with {network.num_classes:,} classes

{_origin(claims)}

{_table(claims)}
The weights, `{WEIGHTS}`, have the names and layouts of PyTorch and the SHA-256
`{sha256}`.
To check the figures, and to classify images:

    alexnet-jax verify FOLDER --data_path DIR
    alexnet-jax load FOLDER --workdir runs/loaded
    alexnet-jax predict --workdir runs/loaded photo.jpg
"""
  config = json.dumps(about, indent=2, sort_keys=True) + '\n'
  return {_CONFIG: config, _CARD: card}
