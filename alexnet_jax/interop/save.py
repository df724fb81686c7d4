"""Writes the weights of a run for PyTorch.

python -m alexnet_jax.interop.save --workdir DIR FILE.safetensors
"""

import argparse
import pathlib
import sys

from alexnet_jax import cli

_DESCRIPTION = """\
Writes the weights of a run as a .safetensors file with the names and layouts of
PyTorch, those of a module like torchvision's AlexNet: nn.Sequential `features`
and `classifier`, whose numbers count every module. Averaged weights are written
where the run has them. `interop.load --from torch` gets everything back: the
file says of which network it is and how images are prepared."""


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.interop.save',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('file', metavar='FILE.safetensors')
  cli.add_run(parser)
  parser.add_argument(
    '--overwrite', action='store_true', help='replaces a file that is there'
  )
  cli.add_json(parser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments = _arguments(argv)
  return cli.run(lambda: _save(arguments), json_output=arguments.json)


def _save(arguments):
  """Writes the file; the command's result."""
  path = pathlib.Path(arguments.file)
  _check_file(path, arguments.overwrite)

  from alexnet_jax.interop import metadata
  from alexnet_jax.training import build
  from alexnet_jax.training import checkpoint

  run = checkpoint.open_run(arguments.workdir, arguments.checkpoint)
  config, class_names, state = run.config, run.class_names, run.state
  mean = build.stored_mean(config, arguments.workdir)
  description = metadata.of_run(config, mean, class_names, int(state.step))
  tensors = write(path, state.eval_params, state.batch_stats, description)
  count = sum(array.size for array in tensors.values())
  print(
    f'{path}: step {description.step}, {len(tensors)} tensors, {count:,}'
    ' numbers',
    file=sys.stderr,
  )
  notes = foreign_parts(description.model)
  for note in notes:
    print(f'note: {note}', file=sys.stderr)
  return {
    'file': str(path),
    'step': description.step,
    'tensors': {name: list(array.shape) for name, array in tensors.items()},
    'numbers': count,
    'notes': notes,
  }


def _check_file(path, overwrite):
  from alexnet_jax.errors import UserError

  if path.suffix != '.safetensors':
    raise UserError(f'FILE is {str(path)!r}; it must end in .safetensors')
  if path.is_dir():
    raise UserError(f'{path} is a folder; name a file')
  if not path.parent.is_dir():
    raise UserError(f'there is no folder {path.parent}')
  if path.exists() and not overwrite:
    raise UserError(
      f'{path} is there already; give --overwrite to replace it, or another'
      ' name'
    )


def write(path, params: dict, batch_stats: dict, description) -> dict:
  """Writes the file as a whole or not at all.

  Args:
    path: of the file.
    params, batch_stats: of the network, float32.
    description: see `metadata.of_run`.

  Returns:
    {name: array}, as PyTorch has them.
  """
  import safetensors.numpy

  from alexnet_jax import files
  from alexnet_jax.interop import metadata
  from alexnet_jax.interop import torch_layout
  from alexnet_jax.interop import torch_storage

  plan = torch_layout.layers(
    description.model, description.num_classes, description.data['crop_size']
  )
  tensors = torch_layout.to_torch(params, batch_stats, plan)
  text = {
    'format': 'pt',
    torch_storage.METADATA_KEY: metadata.to_text(description),
  }
  with files.replaced_file(path) as temporary:
    safetensors.numpy.save_file(tensors, temporary, text)
  return tensors


def foreign_parts(model: dict) -> list[str]:
  """Sentences on what the network has and torch.nn lacks, for people.

  Names and layouts are clear for every network; what some of them compute
  between the layers has no module in PyTorch.

  Args:
    model: fields of `config.model`.
  """
  orders = model['block_order'] or ()
  lrn = model['norm'] == 'lrn' and bool(model['norm_layers'])
  found = {
    'LRN of groups of channels': lrn and model['lrn_groups'] > 1,
    'normalization in space': any('spatial' in order for order in orders),
    'dropout that scales down in evaluation': (
      model['dropout'] > 0 and model['dropout_scaling'] == 'evaluation'
    ),
  }
  return [
    f'torch.nn has no module for {name}: whoever uses the weights there has to'
    ' write it'
    for name, there in found.items()
    if there
  ]


if __name__ == '__main__':
  sys.exit(main())
