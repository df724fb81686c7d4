"""Makes a run of weights that were trained elsewhere.

python -m alexnet_jax.interop.load --from torchvision FILE --workdir DIR
python -m alexnet_jax.interop.load FOLDER --workdir DIR
"""

import dataclasses
import pathlib
import shlex
import sys

from alexnet_jax import cli, files
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Makes the folder of a run of weights that were trained in another framework, so
that evaluate, predict, report and fine-tuning take them.

  torchvision  a state dict of torchvision's AlexNet (.safetensors or .pth)
  torch        a state dict of another network: a file or folder of
               `interop.save` (default), or with --network
  caffe        a .caffemodel of bvlc_alexnet or caffenet
  keras        .weights.h5 of Keras 3, of the network --network"""
_EPILOG = """\
Nothing in a file is executed. The data that the network is measured on may be
given here, or its path to `evaluate` with --data_path; its classes must be the
--class_names, in the order of the network's outputs: of a folder, the sorted
names of its subfolders. To train further, start another run with
--config.init.workdir=DIR. Exit codes: 0 done, 2 something to mend."""

# Options that `networks.Options` has as well: value, default and help.
_OPTIONS = {
  'network': ('NAME', '', 'torch, keras: a network of models/variants.py'),
  'crop_size': (
    'N',
    0,
    'torch, keras: width of the images that the network reads, in pixels'
    ' (default: what the network is meant for, 224 for most)',
  ),
  'mean': (
    'FILE or R,G,B',
    '',
    'subtracted from pixels of 0 to 255: three levels or one for all, of caffe'
    " a .binaryproto mean image (default: torchvision's; keras: 0,0,0; caffe:"
    " the file's, or 123,117,104)",
  ),
  'std': (
    'R,G,B',
    '',
    'torch, keras: pixels minus the mean are divided by these levels, or one'
    " for all (default: torchvision's; keras: 255,255,255)",
  ),
  'batch_norm_epsilon': (
    'E',
    0.0,
    'torch, keras: added to the variances of batch norms (default: that of'
    " --network, Keras' 0.001; PyTorch's default is 1e-05)",
  ),
}


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('interop.load', _DESCRIPTION, _EPILOG)
  add = parser.add_argument
  add('file', type=cli.path, metavar='FILE', help='the weights')
  kinds = 'torchvision', 'torch', 'caffe', 'keras'
  add('--from', dest='kind', default='torch', choices=kinds)
  text = 'a new folder'
  add('--workdir', required=True, type=cli.path, metavar='DIR', help=text)
  for name, (metavar, default, text) in _OPTIONS.items():
    kind = cli.path if metavar.startswith('FILE') else type(default)
    add(f'--{name}', type=kind, default=default, metavar=metavar, help=text)
  text = 'a name a line, in the order of the outputs (default: those of FILE)'
  add('--class_names', default='', type=cli.path, metavar='FILE', help=text)
  text = 'config.data.source of the data to measure it on (default: folder)'
  add('--data_source', default='folder', metavar='KIND', help=text)
  text = 'path of that data'
  add('--data_path', default='', type=cli.path, metavar='DIR', help=text)
  return cli.run_parsed(parser, argv, _load)


def _load(arguments):
  options = _check_options(arguments)

  from alexnet_jax.interop import (
    caffe_files,
    claims,
    imported_run,
    keras_files,
    torch_files,
  )
  from alexnet_jax.training import transfer

  kind, workdir = arguments.kind, arguments.workdir
  files.check_new_folder(workdir)
  given_names = _read_names(arguments.class_names)
  readers = {'caffe': caffe_files, 'keras': keras_files}
  file = pathlib.Path(arguments.file)
  if file.is_dir() and kind == 'torch':
    file /= claims.WEIGHTS
  network = readers.get(kind, torch_files).read(file, options)
  config = imported_run.make_config(
    network, arguments.data_source, arguments.data_path
  )
  named = given_names or network.class_names
  names = named or transfer.placeholder_names(network.num_classes)
  network = dataclasses.replace(network, class_names=tuple(names))
  origin = {'from': kind, 'file': pathlib.Path(arguments.file).name}
  digest = imported_run.write(config, network, workdir, origin)
  layers = network.params.values()
  count = sum(leaf.size for layer in layers for leaf in layer.values())
  lines = [
    f'{workdir}: {count:,} parameters, {len(names)} classes,'
    f' {"gray " * (config.data.channels == 1)}images of'
    f' {config.data.crop_size} pixels'
  ]
  if not named:
    lines.append(
      f'the file names no classes: they are called {names[0]} to {names[-1]}'
      ' (--class_names FILE names them)'
    )
  no_data = config.data.path == transfer.NO_DATA
  lines.append(
    'next: python -m alexnet_jax.evaluation.evaluate --workdir'
    f' {shlex.quote(workdir)}{" --data_path DIR" if no_data else ""}'
  )
  print('\n'.join(lines), file=sys.stderr)
  return {
    'workdir': workdir,
    'parameters': count,
    'num_classes': network.num_classes,
    'classes_are_named': bool(named),
    'crop_size': config.data.crop_size,
    'state_digest': digest,
  }


def _check_options(arguments):
  from alexnet_jax.interop import networks

  kind, data = arguments.kind, arguments.data_path
  given = {name: getattr(arguments, name) for name in _OPTIONS}
  taken = {'torchvision': (), 'caffe': ('mean',)}.get(kind, _OPTIONS)
  for name, value in given.items():
    if value and name not in taken:
      raise UserError(
        f'--{name} is not for --from {kind}, which says it itself; for another'
        ' network of PyTorch give --from torch and --network'
      )
  for name, most in (('crop_size', 2**16), ('batch_norm_epsilon', 1)):
    if not 0 <= given[name] <= most:
      raise UserError(
        f'--{name} is {given[name]}; it takes a number above 0, at most {most}'
      )
  if data and not pathlib.Path(data).is_dir():
    raise UserError(
      f'--data_path: there is no folder {data}; give the one of the data, or'
      ' leave it out and give it to `evaluate`'
    )
  if kind == 'torchvision':
    given['network'] = 'alexnet_torchvision'
  if kind == 'caffe':
    given['mean_file'] = given.pop('mean')
  else:
    given['mean'] = _parse_levels('mean', given['mean'], 0)
  given['std'] = _parse_levels('std', given['std'], 1e-9)
  return networks.Options(**given)


def _parse_levels(name, text, least):
  try:
    levels = tuple(map(float, text.split(','))) if text else ()
  except ValueError:
    levels = (float('nan'),)
  levels *= 3 if len(levels) == 1 else 1
  if levels and not (
    len(levels) == 3 and all(least <= level <= 1e6 for level in levels)
  ):
    raise UserError(
      f'--{name} is {text!r}; it takes three levels R,G,B of pixels from 0 to'
      ' 255, such as 123.675,116.28,103.53, or one for all'
    )
  return levels


def _read_names(path):
  files.refuse_special_file(path)
  try:
    text = pathlib.Path(path).read_text('utf-8-sig') if path else ''
  except UnicodeDecodeError as error:
    raise UserError(
      f'--class_names: {path} is no UTF-8 text: {error}'
    ) from None
  names = [line.strip() for line in text.rstrip().splitlines()]
  if path and not names:
    raise UserError(f'--class_names: {path} is empty')
  return names


if __name__ == '__main__':
  sys.exit(main())
