"""Writes a trained network as a program that needs neither flax nor this.

python -m alexnet_jax.interop.export --workdir DIR OUT
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile

from alexnet_jax import cli

_DESCRIPTION = """\
Writes a trained network as a folder: program.bin (StableHLO of jax.export, for
any number of images), params.npz, about.json and load.py, which runs it and
needs jax, flatbuffers and numpy alone, and Pillow for photographs.

The program takes uint8 crops, subtracts the mean itself, and gives
probabilities. JAX promises to read such programs for six months of releases at
least."""
PLATFORMS = ('cpu', 'cuda')


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.interop.export',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('out', metavar='OUT', help='a new folder')
  cli.add_run(parser)
  parser.add_argument(
    '--onnx',
    action='store_true',
    help="also writes network.onnx (pip install -e '.[onnx]')",
  )
  cli.add_json(parser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  arguments = _arguments(argv)
  return cli.run(lambda: _export(arguments), json_output=arguments.json)


def _export(arguments):
  """Writes the folder; the command's result."""
  from alexnet_jax.errors import UserError

  out = pathlib.Path(arguments.out)
  if out.exists():
    raise UserError(f'{out} is there already; name a new folder')
  if not out.absolute().parent.is_dir():
    raise UserError(f'there is no folder {out.absolute().parent}')
  about = write(arguments.workdir, arguments.checkpoint, out, arguments.onnx)
  print(
    f'{out}: {len(about["class_names"])} classes, images of'
    f' {about["crop_size"]} pixels, for {" and ".join(PLATFORMS)}',
    file=sys.stderr,
  )
  if arguments.onnx:
    print(_onnx_line(about), file=sys.stderr)
  print(f'next: python {out}/load.py PHOTOS', file=sys.stderr)
  said = ('step', 'sha256', 'onnx_difference')
  return {'out': str(out), **{k: about[k] for k in said if k in about}}


def _onnx_line(about):
  size = about['crop_size']
  return (
    f'network.onnx: input images uint8 [batch, {size}, {size}, 3], output'
    ' probabilities; ONNX Runtime differs by at most'
    f' {about["onnx_difference"]:.1g}'
  )


def write(
  workdir: str, which: str, out: pathlib.Path, onnx: bool = False
) -> dict:
  """Exports a checkpoint of a run; returns what about.json says.

  Args:
    workdir: the run's folder.
    which: see `checkpoint.open_run`.
    out: a folder that is not there yet; it appears as a whole.
    onnx: also writes network.onnx, see `onnx_program.convert`.

  Raises:
    UserError: if there is no run, or no such checkpoint, or the network cannot
      be converted.
  """
  import numpy as np

  from alexnet_jax.interop import onnx_program
  from alexnet_jax.training import build
  from alexnet_jax.training import checkpoint
  from alexnet_jax.training import checkpoint_contents
  from alexnet_jax.training import state as state_lib

  if onnx:
    onnx_program.require()
  run = checkpoint.open_run(workdir, which)
  config, class_names, state = run.config, run.class_names, run.state
  mean = build.stored_mean(config, workdir)
  variables = {'params': state.eval_params, 'batch_stats': state.batch_stats}
  params = {
    name: np.asarray(leaf)
    for name, leaf in state_lib.leaf_names(variables).items()
  }
  about = {
    'class_names': list(class_names),
    'crop_size': config.data.crop_size,
    'resize_size': config.data.resize_size,
    'mean': np.asarray(mean).tolist() if mean.ndim == 1 else 'in the program',
    'std': _std(config),
    'step': int(state.step),
    'model': config.model.to_dict(),
    'platforms': PLATFORMS,
    'versions': checkpoint_contents.versions(),
  }
  function = make_function(config, len(class_names), mean, variables)
  shape = build.image_shape(config)
  files = {'program.bin': exported_program(function, params, shape)}
  if onnx:
    files['network.onnx'], about['onnx_difference'] = onnx_program.convert(
      lambda images: function(params, images), shape
    )
  return _write_folder(out, files, params, about)


def _write_folder(out, files, params, about):
  """As a whole or not at all; `about` with the files' hashes."""
  import numpy as np

  from alexnet_jax.interop import program_loader

  with tempfile.TemporaryDirectory(dir=out.absolute().parent) as temporary:
    folder = pathlib.Path(temporary) / 'program'
    folder.mkdir()
    for name, content in files.items():
      (folder / name).write_bytes(content)
    np.savez(folder / 'params.npz', **params)
    sums = {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(folder.iterdir())
    }
    about = {**about, 'sha256': sums}
    text = json.dumps(about, indent=2, default=list)
    (folder / 'about.json').write_text(text, encoding='utf-8')
    shutil.copy(program_loader.__file__, folder / 'load.py')
    os.rename(folder, out)
  return about


def make_function(config, num_classes: int, mean, variables):
  """What the program computes.

  Args:
    config: of the run.
    num_classes: of its data.
    mean: float32, see `pixel_statistics.Statistics`.
    variables: {'params', 'batch_stats'} of the network.

  Returns:
    ({name: float32 array}, uint8 [batch, crop_size, crop_size, 3]) ->
    probabilities, float32 [batch, num_classes]. It has the plain forms of all
    operations: what is fast on a device may be read by no other.
  """
  import jax

  from alexnet_jax.training import build
  from alexnet_jax.training import preprocess
  from alexnet_jax.training.state import leaf_names

  plain = config.copy_and_resolve_references()
  plain.forms = 'plain'
  model = build.make_model(plain, num_classes)
  names, treedef = list(leaf_names(variables)), jax.tree.structure(variables)

  def probabilities(params, images):
    tree = jax.tree.unflatten(treedef, [params[name] for name in names])
    logits = model.apply(tree, preprocess.normalize(images, mean, _std(config)))
    return jax.nn.softmax(logits)

  return probabilities


def exported_program(function, params: dict, image_shape: tuple) -> bytes:
  """The serialized program of `jax.export`, for any number of images.

  Args:
    function: of `make_function`.
    params: {name: float32 array}.
    image_shape: (height, width, 3).
  """
  import jax
  import jax.export
  import jax.numpy as jnp

  (batch,) = jax.export.symbolic_shape('batch')
  shapes = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for name, leaf in params.items()
  }
  images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
  exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(
    shapes, images
  )
  return bytes(exported.serialize())


def _std(config):
  """What pixels are divided by: three numbers, or one."""
  return tuple(config.data.std_rgb) or config.data.std


if __name__ == '__main__':
  sys.exit(main())
