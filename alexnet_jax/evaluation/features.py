"""Writes what the layers of a trained network make of images.

python -m alexnet_jax.evaluation.features --workdir DIR --layers conv5,dense2
--out OUT photo.jpg folder/ ...
"""

from collections.abc import Iterator, Sequence
import contextlib
import itertools
import math
import sys

import numpy as np

from alexnet_jax import cli, errors, files
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Writes the outputs of layers, as the network of a run computes them in
evaluation: the center of the resized image, minus the mean; no dropout. Layers
have the names that `main --summary` shows. The ReLU that comes directly after a
layer belongs to its output: conv2 has no negative numbers, unless batch norm
lies between; then norm2 has none. head gives the logits."""
_EPILOG = """\
OUT gets LAYER.npy, float32 [images, ...] (channels last), and examples.csv: the
row of each image, its name, and its class in a split. Memory does not grow with
their number; numpy.load(FILE, mmap_mode='r') reads as little. Images that
cannot be decoded have no row. Exit codes: 0 done, 2 something to mend, such as
named files that cannot be decoded."""


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('evaluation.features', _DESCRIPTION, _EPILOG)
  add = parser.add_argument
  text = 'an image, or a folder with images in it or below'
  add('paths', nargs='*', type=cli.path, metavar='PATH', help=text)
  text = 'or the images of a split: validation, train, a split of TFDS'
  add('--split', default='', help=text)
  add('--layers', required=True, metavar='LAYER,...')
  add('--out', required=True, type=cli.path, help='a new folder')
  cli.add_run(parser)
  cli.add_data_path(parser)
  cli.add_data_source(parser)

  def exit_code(arguments, result):
    fails = arguments.paths and result['unreadable']
    return errors.EXIT_USER if fails else errors.EXIT_DONE

  return cli.run_parsed(parser, argv, _work, exit_code)


def _work(arguments):
  paths, split, out = arguments.paths, arguments.split, arguments.out
  data = arguments.data_path, arguments.data_source
  if bool(paths) == bool(split) or (paths and any(data)):
    raise UserError(
      'give either images or --split, which --data_path and --data_source go'
      ' with'
    )
  if out.endswith('.npy'):
    raise UserError(f'--out is {out!r}; name a folder, for LAYER.npy')
  files.check_new_folder(out)
  from alexnet_jax.data import folder as folder_lib
  from alexnet_jax.evaluation import loading

  images = folder_lib.find_images(paths) if paths else []
  run = loading.load_network(
    arguments.workdir, arguments.checkpoint, data[0], data_source=data[1]
  )
  shapes = _shapes(run, arguments.layers.split(','))
  if paths:
    run, loader = loading.open_images(run, images, 'skip')
  else:
    loader, _ = loading.open_split(run, split)
  numbers = sum(map(math.prod, shapes.values()))
  files.check_room(out, 4 * numbers * loader.source.num_examples)
  with files.new_folder(out) as folder:
    count = _write(folder, run, loader, shapes)
  left_out = [{'file': f, 'reason': r} for f, r in loader.unreadable.items()]
  text = f'{out}: {", ".join(shapes)} of {count:,} images'
  if left_out:
    text += f'; {len(left_out)} cannot be read: the warnings above name them'
  print(text, file=sys.stderr)
  return {
    'out': out,
    'layers': {name: [count, *shape] for name, shape in shapes.items()},
    'step': int(run.state.step),
    'examples': count,
    'unreadable': left_out,
  }


def layer_shapes(run) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of outputs of all layers, in order of execution."""
  from alexnet_jax.models import costs
  from alexnet_jax.training import build

  shape = build.image_shape(run.config)
  _, rows = costs.layer_table(run.state.apply_fn.__self__, shape)
  return {name: shape for name, shape, _ in rows}


def _shapes(run, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of outputs of layers; UserError if there is no such."""
  known = layer_shapes(run)
  if unknown := [name for name in names if name not in known]:
    raise UserError(
      f'there is no layer {unknown[0]!r}; there are {", ".join(known)}'
    )
  return {name: known[name] for name in names}


def _write(folder, run, loader, shapes) -> int:  # the number of rows
  from alexnet_jax.data import raw

  source, numbers = loader.source, itertools.count()

  def table():
    yield 'row', 'name', 'label'
    indices = iter(range(source.num_examples))
    for labels, counts, outputs in layer_outputs(run, loader, shapes):
      for name, append in appends.items():
        append(outputs[name][counts])
      # The last batch is filled up. Indices last: zip takes none too many.
      for label, is_there, index in zip(labels, counts, indices, strict=False):
        row = name = ''
        if is_there:
          row, name = next(numbers), source.class_names[label]
        yield row, source.describe(index), name

  with contextlib.ExitStack() as stack:
    appends = {
      name: stack.enter_context(
        raw.new_array(folder / f'{name}.npy', '<f4', shape)
      )
      for name, shape in shapes.items()
    }
    # A name of a file may be any bytes; they are written as they are.
    files.write_csv(folder / 'examples.csv', table(), errors='surrogateescape')
  if not (count := next(numbers)):
    raise UserError('none of the images can be read')
  return count


def layer_outputs(run, loader, names) -> Iterator[tuple]:
  """Yields what `step.feature_step` gives for each batch, as numpy arrays."""
  import jax

  from alexnet_jax.evaluation import evaluate
  from alexnet_jax.training import measure

  model = run.state.apply_fn.__self__
  layers = tuple((name, model.relu_follows(name)) for name in names)
  step = run.steps.features(layers)

  with contextlib.closing(evaluate.host_batches(run, loader)) as batches:
    results = (step(run.state, run.to_devices(batch)) for batch in batches)
    yield from map(jax.device_get, measure.one_late(results))


def largest(parts: Sequence[Sequence], count: int) -> list[np.ndarray]:
  """Returns the `count` largest numbers of each row of all parts, in order.

  A part is (numbers [rows, n], arrays [rows, n, ...] of what belongs to them),
  and so is the result; of equal numbers the earlier comes first.
  """
  joined = [np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True)]
  order = np.argsort(-joined[0], 1, kind='stable')[:, :count]
  rows = np.arange(len(order))[:, None]
  return [array[rows, order] for array in joined]


def of_images(run, images: Sequence, layer: str) -> np.ndarray:
  """Returns the outputs of a layer for images; see `run.Run.features`."""
  from alexnet_jax.evaluation import loading

  shapes = _shapes(run, [layer])
  run, loader = loading.open_images(run, images)
  parts = [
    outputs[layer][counts]
    for _, counts, outputs in layer_outputs(run, loader, shapes)
  ]
  return np.concatenate(parts)


if __name__ == '__main__':
  sys.exit(main())
