"""Writes the weights of a run for PyTorch, or a folder for a model hub.

python -m alexnet_jax.interop.save --workdir DIR FILE.safetensors
"""

import pathlib
import sys

from alexnet_jax import cli, files
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Writes the weights of a run as a .safetensors file with the names and layouts of
PyTorch, those of a module like torchvision's AlexNet: nn.Sequential `features`
and `classifier`, whose numbers count every module. Averaged weights are written
if the run has them. `interop.load --from torch` gets everything back: the file
says of which network it is, how images are prepared, how it was trained and
what it reaches; `interop.verify` checks that. A name without a suffix becomes a
folder for a model hub: model.safetensors, config.json and a model card."""
_TORCH_EPSILON = 1e-5  # the default of torch.nn's batch norms


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('interop.save', _DESCRIPTION)
  parser.add_argument('file', type=cli.path, metavar='FILE.safetensors|FOLDER')
  cli.add_run(parser)
  return cli.run_parsed(parser, argv, _save)


def _save(arguments):
  path = pathlib.Path(arguments.file)
  if path.suffix not in ('', '.safetensors'):
    raise UserError(
      f'FILE is {str(path)!r}; it must end in .safetensors, or have no suffix'
      ' and become a folder'
    )
  if not path.parent.is_dir():
    raise UserError(f'there is no folder {path.parent}')
  if path.exists():
    raise UserError(f'{path} is there already; give another name')

  from alexnet_jax.interop import claims, imported_run, torch_files

  run, network = imported_run.read(arguments.workdir, arguments.checkpoint)
  step = int(run.state.step)
  if path.suffix:
    tensors = torch_files.write(path, network)
  else:
    with files.new_folder(path) as folder:
      tensors = torch_files.write(folder / claims.WEIGHTS, network)
      claims.write_folder(folder, network)
  count = sum(array.size for array in tensors.values())
  print(
    f'{path}: step {step}, {len(tensors)} tensors, {count:,} numbers',
    file=sys.stderr,
  )
  notes = foreign_parts(network.model)
  if network.claims['data'] and not network.claims['measured']:
    notes.append(f'step {step} was not measured in training: no figures')
  for note in notes:
    print(f'note: {note}', file=sys.stderr)
  return {
    'file': str(path),
    'step': step,
    'tensors': {name: list(array.shape) for name, array in tensors.items()},
    'numbers': count,
    'notes': notes,
  }


def foreign_parts(model: dict) -> list[str]:
  """Returns sentences on what `config.model` has and torch.nn lacks."""
  orders = ''.join(model['block_order'] or ())
  has_lrn = model['norm'] == 'lrn' and model['norm_layers']
  scales_down = model['dropout'] and model['dropout_scaling'] == 'evaluation'
  notes = [
    f'torch.nn has no module for {name}: whoever uses the weights there has to'
    ' write it'
    for name, there in (
      ('LRN of groups of channels', has_lrn and model['lrn_groups'] > 1),
      ('normalization in space', 'spatial' in orders),
      ('dropout that scales down in evaluation', scales_down),
    )
    if there
  ]
  epsilon = model['batch_norm_epsilon']
  if model['norm'] == 'batch' and epsilon != _TORCH_EPSILON:
    notes.append(
      f'the batch norms of torch.nn need eps={epsilon:g}; their default is'
      f' {_TORCH_EPSILON:g}'
    )
  return notes


if __name__ == '__main__':
  sys.exit(main())
