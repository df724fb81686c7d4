"""Makes a run of weights that were trained elsewhere.

python -m alexnet_jax.interop.load --from torchvision FILE --workdir DIR
"""

import argparse
import pathlib
import shlex
import sys

from alexnet_jax import cli

_DESCRIPTION = """\
Makes the folder of a run of weights that were trained in another framework, so
that evaluate, predict, report and fine-tuning take them.

  torchvision  a state dict of torchvision's AlexNet (.safetensors or .pth)
  torch        a state dict of another network: of `interop.save`, or --network
  caffe        a .caffemodel, of bvlc_alexnet, caffenet or a relative
  keras        .weights.h5 of Keras 3, of the network --network"""
_EPILOG = """\
Nothing in a file is executed. Layouts, LRN conventions and padding are
converted; what does not fit the network is named. The data that the network is
measured on may be given here, or its place to `evaluate` with --data_path. The
names of its classes must be those of --class_names, in the order of the
network's outputs: of a folder, the sorted names of its subfolders. To train
further, start another run with --config.init.workdir=DIR. Exit codes: 0 done, 2
something to mend in the arguments or the files."""

# Options that a kind of file does not take, and why.
_UNUSED = {
  'torchvision': (
    ('network', 'crop_size', 'mean', 'std'),
    "--from torchvision takes torchvision's own network and preparation: images"
    ' of 224 pixels, its mean and its deviation. For others give --from torch'
    ' --network alexnet_torchvision',
  ),
  'caffe': (
    ('network', 'crop_size', 'std'),
    'the layers, the size of the crop and the scale of pixels are those that'
    ' the .caffemodel says',
  ),
}


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.interop.load',
    description=_DESCRIPTION,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('file', metavar='FILE', help='the weights')
  add(
    '--from',
    dest='kind',
    required=True,
    choices=('torchvision', 'torch', 'caffe', 'keras'),
  )
  add('--workdir', required=True, metavar='DIR', help='a new folder')
  add(
    '--network',
    default='',
    metavar='NAME',
    help='of torch and keras: a network of models/variants.py',
  )
  add(
    '--crop_size',
    type=int,
    default=0,
    metavar='N',
    help='of torch and keras: width of the images that the network reads, in'
    ' pixels (default: what the network is meant for, 224 for most)',
  )
  add(
    '--mean',
    default='',
    metavar='FILE or R,G,B',
    help='what was subtracted from pixels of 0 to 255. caffe: a .binaryproto'
    ' mean image (default: the levels that the .caffemodel says, or'
    ' 123,117,104); torch: three levels, or one for all'
    " (default: torchvision's); keras: likewise (default: 0,0,0)",
  )
  add(
    '--std',
    default='',
    metavar='R,G,B',
    help='of torch and keras: what pixels were divided by then; one level is'
    " for all three (default: torchvision's; keras: 255,255,255)",
  )
  add(
    '--class_names',
    default='',
    metavar='FILE',
    help='a name a line, in the order of the outputs (default: what FILE says,'
    ' or class_0000 and so on)',
  )
  add(
    '--data_source',
    default='folder',
    metavar='KIND',
    help='of the data to measure it on: config.data.source (default: folder)',
  )
  add('--data_path', default='', metavar='DIR', help='where that lies')
  cli.add_json(parser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments = _arguments(argv)
  return cli.run(lambda: _load(arguments), json_output=arguments.json)


def _load(arguments):
  """Makes the run; the command's result."""
  levels = _check_options(arguments)

  from alexnet_jax.interop import imported_run

  imported_run.check_workdir(arguments.workdir)
  names = _read_names(arguments.class_names)
  imported = _read(arguments, levels)
  config = imported_run.make_config(
    imported, arguments.data_source, arguments.data_path
  )
  named = bool(names or imported.class_names)
  names = _all_names(names, imported, arguments.class_names)
  digest = imported_run.write(
    config,
    imported,
    names,
    arguments.workdir,
    {'from': arguments.kind, 'file': str(pathlib.Path(arguments.file).name)},
  )
  count = sum(
    leaf.size for layer in imported.params.values() for leaf in layer.values()
  )
  print(
    f'{arguments.workdir}: {count:,} parameters, {len(names)} classes, images'
    f' of {config.data.crop_size} pixels',
    file=sys.stderr,
  )
  if not named:
    print(
      f'the file names no classes: they are called {names[0]} to {names[-1]}'
      ' (--class_names FILE names them)',
      file=sys.stderr,
    )
  _say_next(arguments.workdir, config.data.path)
  return {
    'workdir': arguments.workdir,
    'parameters': count,
    'num_classes': imported.num_classes,
    'classes_are_named': named,
    'crop_size': config.data.crop_size,
    'state_digest': digest,
  }


def _say_next(workdir, data_path):
  from alexnet_jax.training import transfer

  options = f'--workdir {shlex.quote(workdir)}'
  if data_path == transfer.NO_DATA:
    options += ' --data_path DIR'
  print(
    f'next: python -m alexnet_jax.evaluation.evaluate {options}',
    file=sys.stderr,
  )


def _check_options(arguments):
  """Refuses what can be refused before any work; {mean and std: numbers}."""
  from alexnet_jax.errors import UserError
  from alexnet_jax.models import variants

  kind = arguments.kind
  unused, reason = _UNUSED.get(kind, ((), ''))
  for name in unused:
    if getattr(arguments, name):
      raise UserError(f'--{name} is not for --from {kind}: {reason}')
  if kind == 'keras' and not arguments.network:
    raise UserError(
      '--from keras needs --network: the file does not say of which it is'
    )
  if arguments.network and arguments.network not in variants.VARIANTS:
    raise UserError(
      f'--network is {arguments.network!r}; there are'
      f' {", ".join(variants.VARIANTS)}'
    )
  if arguments.crop_size < 0:
    raise UserError(f'--crop_size is {arguments.crop_size}; it takes pixels')
  files = ['file', 'class_names'] + ['mean'] * (kind == 'caffe')
  for name in files:
    path = getattr(arguments, name)
    if path and not pathlib.Path(path).is_file():
      flag = 'FILE' if name == 'file' else f'--{name}'
      raise UserError(f'{flag}: there is no file {path}')
  data = arguments.data_path
  if data and not pathlib.Path(data).expanduser().is_dir():
    raise UserError(
      f'--data_path: there is no folder {data}; give the one of the data, or'
      ' leave it out and give it to `evaluate`'
    )
  if kind == 'caffe':
    return {}
  return {name: _levels(arguments, name) for name in ('mean', 'std')}


def _levels(arguments, name):
  """Three numbers of an option, one stands for all; () if it is not given."""
  from alexnet_jax.errors import UserError

  text = getattr(arguments, name)
  try:
    levels = tuple(float(part) for part in text.split(',')) if text else ()
  except ValueError:
    levels = (float('nan'),)
  levels *= 3 if len(levels) == 1 else 1
  least = 0 if name == 'mean' else 1e-9
  if levels and not (
    len(levels) == 3 and all(least <= level <= 1e6 for level in levels)
  ):
    raise UserError(
      f'--{name} is {text!r}; it takes three levels R,G,B of pixels from 0 to'
      ' 255, such as 123.675,116.28,103.53, or one for all'
    )
  return levels


def _read(arguments, levels):
  """The `Imported` network of the file."""
  path, kind = arguments.file, arguments.kind
  if kind == 'caffe':
    from alexnet_jax.interop import caffe_files

    return caffe_files.read(path, arguments.mean or None)
  if kind == 'keras':
    from alexnet_jax.interop import keras_files

    return keras_files.read(
      path, arguments.network, crop_size=arguments.crop_size, **levels
    )
  from alexnet_jax.interop import torch_files

  if kind == 'torchvision':
    return torch_files.read_torchvision(path)
  return torch_files.read(
    path, arguments.network, crop_size=arguments.crop_size, **levels
  )


def _read_names(path):
  """The lines of a file; [] if none is given."""
  from alexnet_jax.errors import UserError

  if not path:
    return []
  try:
    text = pathlib.Path(path).read_text('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(
      f'--class_names: {path} is no UTF-8 text: {error}'
    ) from None
  names = [line.strip() for line in text.rstrip().splitlines()]
  if not names or '' in names:
    raise UserError(
      f'--class_names: {path} has an empty line; it takes a name a line'
    )
  if twice := [name for name in names if names.count(name) > 1]:
    raise UserError(
      f'--class_names {path} has {twice[0]!r} twice; every class takes a name'
      ' of its own'
    )
  return names


def _all_names(names, imported, path):
  """Those of --class_names, or of the file, or placeholders."""
  from alexnet_jax.errors import UserError
  from alexnet_jax.training import transfer

  if names and len(names) != imported.num_classes:
    raise UserError(
      f'--class_names {path} has {len(names)} names; the network has'
      f' {imported.num_classes} outputs'
    )
  return (
    names
    or list(imported.class_names or ())
    or transfer.placeholder_names(imported.num_classes)
  )


if __name__ == '__main__':
  sys.exit(main())
