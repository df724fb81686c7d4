"""prepare raw: squares of uint8 pixels in memory-mapped shards.

The manifest, manifest.json:

- format, image_size (pixels), class_names, settings (of the command);
- splits: {train, validation} of {num_examples, source, source_fingerprint,
  skipped (names of what could not be decoded), shards: [{file, num_examples,
  sha256}], labels: {file, sha256}, rgb: {pixels, sums [3], products [3][3]
  (exact integers), mean [3], covariance [3][3]}}.
"""

import hashlib
import pathlib
import sys

import numpy as np

from alexnet_jax.data import pixel_statistics
from alexnet_jax.data import raw
from alexnet_jax.data.prepare import inputs
from alexnet_jax.data.prepare import shards
from alexnet_jax.data.prepare import writing
from alexnet_jax.errors import UserError


def prepare_raw(arguments) -> dict:
  """Writes both splits of a source as squares; see the module's docstring.

  Args:
    arguments: of the command line, see `add_arguments`.

  Returns:
    {out, image_size, classes, splits: {name: examples}, skipped: how many}.

  Raises:
    UserError: if the source is unfit, `out` in use or the disk too small.
  """
  folder = pathlib.Path(arguments.out).expanduser()
  loaders = inputs.open_loaders(arguments, arguments.size)
  settings = _settings(arguments, loaders)
  with shards.locked(folder, raw.MANIFEST):
    if (folder / raw.MANIFEST).exists():
      manifest = _check_prepared(folder, settings)
    else:
      manifest = _write(folder, settings, loaders, arguments)
    return _result(folder, manifest)


def _write(folder, settings, loaders, arguments):
  """Writes the set, or what is missing of it; returns the manifest."""
  size = arguments.size
  plan = shards.plan(loaders, arguments.shard_examples)
  with shards.output(folder, settings, plan) as out:
    missing = sum(s.stop - s.start for s in plan if out.note(s) is None)
    shards.check_room(folder, missing * (size * size * 3 + 4), 'the raw set')
    notes = writing.write_shards(
      out,
      plan,
      loaders,
      file_name=lambda shard: f'{shard.key}.npy',
      convert=_converted,
      write=lambda path, examples: _write_shard(path, examples, size),
    )
    manifest = _manifest(folder, settings, loaders, plan, notes)
    shards.write_json(folder / raw.MANIFEST, manifest, indent=1)
    out.finish()
  return manifest


def _converted(loader, index):
  """(pixels, label, color sums) of an example; None if it is skipped."""
  from alexnet_jax.data import kernels  # slow to import

  example = loader.square(index)
  if example is None:
    return None
  sums = np.zeros(3, np.int64), np.zeros((3, 3), np.int64)
  kernels.add_color_sums(example[0], *sums)
  return *example, sums


def _settings(arguments, loaders):
  return {
    'image_size': arguments.size,
    'shard_examples': arguments.shard_examples,
    'sources': {k: v.source.fingerprint for k, v in loaders.items()},
  }


def _check_prepared(folder, settings):
  """The manifest of a finished set, which must be the one that is asked for."""
  manifest = raw.read_manifest(folder)
  if manifest['settings'] != settings:
    changes = shards.differences(manifest['settings'], settings)
    raise UserError(
      f'{folder} holds a raw set made with other settings or from other data'
      f' ({changes}); choose another --out'
    )
  shards.forget_notes(folder)  # if the last command ended right before that
  print(f'{folder} is prepared already', file=sys.stderr)
  return manifest


def _write_shard(path, examples, size):
  """Writes squares as .npy; how many there are is known at the end only."""
  sha, labels = hashlib.sha256(), []
  sums, products = np.zeros(3, np.int64), np.zeros((3, 3), np.int64)
  with path.open('wb') as file:
    start = _write_header(file, 0, size)
    for pixels, label, (image_sums, image_products) in examples:
      file.write(pixels.data)
      labels.append(label)
      sums += image_sums
      products += image_products
    file.seek(0)
    if _write_header(file, len(labels), size) != start:
      raise RuntimeError('the length of a .npy header changed')
  with path.open('rb') as file:  # from the page cache
    while block := file.read(1 << 24):
      sha.update(block)
  return {
    'sha256': sha.hexdigest(),
    'num_examples': len(labels),
    'labels': labels,
    'sums': sums.tolist(),
    'products': products.tolist(),
  }


def _write_header(file, count, size):
  """The header of a .npy file; returns its length."""
  header = {
    'descr': '|u1',
    'fortran_order': False,
    # numpy leaves room for a larger first dimension.
    'shape': (count, size, size, 3),
  }
  np.lib.format.write_array_header_1_0(file, header)
  return file.tell()


def _manifest(folder, settings, loaders, plan, notes):
  splits = {}
  for split, own in shards.by_split(plan, notes).items():
    source = loaders[split].source
    labels = np.array([k for n in own for k in n['labels']], np.int32)
    splits[split] = {
      'num_examples': len(labels),
      'source': source.name,
      'source_fingerprint': source.fingerprint,
      'skipped': [name for note in own for name in note['skipped']],
      'shards': [
        {
          'file': note['file'],
          'num_examples': note['num_examples'],
          'sha256': note['sha256'],
        }
        for note in own
      ],
      'labels': _write_labels(folder / f'{split}-labels.npy', labels),
      'rgb': pixel_statistics.color_statistics(
        len(labels) * settings['image_size'] ** 2,
        np.sum([note['sums'] for note in own], 0),
        np.sum([note['products'] for note in own], 0),
      ),
    }
  return {
    'format': raw.FORMAT,
    'image_size': settings['image_size'],
    'class_names': list(loaders['train'].source.class_names),
    'settings': settings,
    'splits': splits,
  }


def _write_labels(path, labels):
  temporary = path.with_suffix('.npy.tmp')
  with temporary.open('wb') as file:
    np.save(file, labels)
  shards.put_in_place(temporary, path)
  sha = hashlib.sha256(path.read_bytes()).hexdigest()
  return {'file': path.name, 'sha256': sha}


def _result(folder, manifest):
  splits = manifest['splits']
  classes, size = len(manifest['class_names']), manifest['image_size']
  command = inputs.train_command(classes, size, source='raw', path=folder)
  print(command, file=sys.stderr)
  return {
    'out': str(folder),
    'image_size': size,
    'classes': classes,
    'splits': {name: info['num_examples'] for name, info in splits.items()},
    'skipped': sum(len(info['skipped']) for info in splits.values()),
  }


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'raw',
    help='decode a data set once, into squares of uint8 pixels',
    description='Writes the center squares of all images as uint8 arrays, which'
    ' training memory-maps. ImageNet at 256 pixels takes 262 GB.',
  )
  inputs.add_arguments(parser)
  parser.add_argument(
    '--size', type=inputs.positive, default=256, help='in pixels (default: 256)'
  )
  parser.add_argument(
    '--shard_examples',
    type=inputs.positive,
    default=5_000,
    help='images in a file (default: 5,000: about 1 GB at 256 pixels)',
  )
  parser.set_defaults(work=prepare_raw)
