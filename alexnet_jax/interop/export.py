"""Writes a trained network as a program that needs neither flax nor this.

python -m alexnet_jax.interop.export --workdir DIR OUT
"""

import hashlib
import json
import logging
import shlex
import shutil
import sys

import numpy as np

from alexnet_jax import cli, files
from alexnet_jax.errors import how_to_install, UserError

_DESCRIPTION = """\
Writes a trained network as a folder: program.bin (StableHLO of jax.export, for
any number of images), params.npz, about.json and load.py, which runs it and
needs jax, flatbuffers and numpy alone, and Pillow for photographs.

The program takes uint8 crops, subtracts the mean itself, and gives
probabilities. JAX promises to read such programs for six months of releases at
least."""
PLATFORMS = ('cpu', 'cuda')
# Largest difference between probabilities of ONNX Runtime and JAX, in float32.
TOLERANCE = 1e-4


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('interop.export', _DESCRIPTION)
  parser.add_argument('out', type=cli.path, metavar='OUT', help='a new folder')
  cli.add_run(parser)
  text = "also writes network.onnx (pip install -e '.[onnx]')"
  parser.add_argument('--onnx', action='store_true', help=text)
  return cli.run_parsed(parser, argv, _export)


def _export(arguments):
  import jax
  import jax.export

  from alexnet_jax.interop import imported_run, program_loader
  from alexnet_jax.training import progress

  out = arguments.out
  files.check_new_folder(out)
  run, network = imported_run.read(arguments.workdir, arguments.checkpoint)
  config, step = run.config, int(run.state.step)
  size, mean = config.data.crop_size, network.mean
  function, params = _make_function(config, network)
  about = {
    'class_names': network.class_names,
    'crop_size': size,
    'channels': config.data.channels,
    'resize_size': config.data.resize_size,
    'mean': mean.tolist() if mean.ndim == 1 else 'in the program',
    'std': tuple(config.data.std_rgb) or config.data.std,
    'step': step,
    'model': network.model,
    'platforms': PLATFORMS,
    'versions': progress.versions(),
  }
  (batch,) = jax.export.symbolic_shape('batch')
  shape = size, size, config.data.channels
  images = jax.ShapeDtypeStruct((batch, *shape), 'uint8')
  exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)
  contents = {'program.bin': bytes(exported(params, images).serialize())}
  note = ''
  if arguments.onnx:
    onnx, difference = _convert_to_onnx(function, params, shape)
    contents['network.onnx'], about['onnx_difference'] = onnx, difference
    note = (
      f'network.onnx: input images uint8 [batch, {str(shape)[1:-1]}], output'
      f' probabilities; ONNX Runtime differs by at most {difference:.1g}\n'
    )
  with files.new_folder(out) as folder:
    for name, content in contents.items():
      (folder / name).write_bytes(content)
    np.savez(folder / 'params.npz', **params)
    about['sha256'] = {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(folder.iterdir())
    }
    text = json.dumps(about, indent=2, default=list)
    (folder / 'about.json').write_text(text, encoding='utf-8')
    shutil.copy(program_loader.__file__, folder / 'load.py')
  print(
    f'{out}: {network.num_classes} classes, images of {size} pixels, for'
    f' {" and ".join(PLATFORMS)}\n{note}'
    f'next: python {shlex.quote(f"{out}/load.py")} PHOTOS',
    file=sys.stderr,
  )
  keys = ('step', 'sha256', 'onnx_difference')
  return {'out': out, **{key: about[key] for key in keys if key in about}}


def _make_function(config, network):
  """Returns (the function that is exported, its parameters {name: array}).

  It is (parameters, uint8 [batch, crop_size, crop_size, channels]) ->
  probabilities, float32 [batch, num_classes].
  """
  import jax

  from alexnet_jax.training import build, preprocess, state as state_lib

  config = config.copy_and_resolve_references()
  config.implementation = 'reference'  # which all devices can read
  model = build.make_model(config, network.num_classes)
  std = tuple(config.data.std_rgb) or config.data.std
  variables = {'params': network.params, 'batch_stats': network.batch_stats}
  treedef = jax.tree.structure(variables)
  leaves = state_lib.leaf_names(variables)

  def probabilities(params, images):
    tree = jax.tree.unflatten(treedef, [params[name] for name in leaves])
    images = preprocess.normalize(images, network.mean, std)
    return jax.nn.softmax(model.apply(tree, images))

  return probabilities, {name: np.asarray(leaves[name]) for name in leaves}


def _convert_to_onnx(function, params, shape):
  """Returns (serialized ONNX model, largest difference of probabilities)."""
  import jax

  try:
    import jax2onnx
    import onnxruntime
  except ImportError as error:
    advice = how_to_install('onnx')
    raise UserError(f'--onnx needs its extra ({error}): {advice}') from None

  def probabilities(images):
    return function(params, images)

  # It warns of shapes that it leaves out, which nobody needs.
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)
  try:
    model = jax2onnx.to_onnx(
      probabilities,
      [jax.ShapeDtypeStruct(('batch', *shape), np.uint8)],
      model_name='alexnet_jax',
      input_names=['images'],
      output_names=['probabilities'],
    )
  except Exception as error:  # its plugins raise anything
    raise UserError(
      f'jax2onnx cannot convert this network ({type(error).__name__}: {error});'
      ' leave --onnx out'
    ) from error
  program = model.SerializeToString()
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors
  session = onnxruntime.InferenceSession(
    program, options, providers=['CPUExecutionProvider']
  )
  # Smooth, as photographs are: images of noise all look alike to a network.
  size, _, channels = shape
  rng = np.random.default_rng(0)
  patches = rng.integers(0, 256, (4, 4, 4, channels), np.uint8)
  index = np.arange(size) * 4 // size
  images = patches[:, index][:, :, index]
  (found,) = session.run(['probabilities'], {'images': images})
  difference = float(np.abs(found - jax.jit(probabilities)(images)).max())
  if not difference <= TOLERANCE:
    raise UserError(
      'the converted network is another one: its probabilities differ by up to'
      f' {difference:.1e}, expected {TOLERANCE} at most; leave --onnx out'
    )
  return program, difference


if __name__ == '__main__':
  sys.exit(main())
