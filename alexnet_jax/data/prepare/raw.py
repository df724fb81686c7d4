"""The command `prepare raw`: squares of uint8 pixels in memory-mapped shards.

manifest.json has format, image_size (pixels), channels, class_names, settings
(of the command) and splits: {train, validation} of {num_examples, source,
source_fingerprint, skipped (names), shards: [{file, num_examples, sha256}],
labels: {file, sha256}, rgb: `pixel_statistics.color_statistics`}; of gray
squares those of three equal channels.
"""

import hashlib
import math
import pathlib

import numpy as np

from alexnet_jax import files
from alexnet_jax.data import images, pixel_statistics, raw


class RawSet:
  """A raw set that `shards.prepare` writes.

  Its result: {out, image_size, channels, classes, splits: {name: examples},
  skipped: how many}. Its settings are all that its bytes depend on.
  """

  description = raw.MANIFEST  # the file that makes its folder a finished set
  settings_file = raw.MANIFEST

  def __init__(self, arguments, loaders):
    self.folder = pathlib.Path(arguments.out)
    self._size = arguments.size
    self._shape = (arguments.size, arguments.size, arguments.channels)
    self._loaders = loaders
    self.settings = {
      'image_size': arguments.size,
      'channels': arguments.channels,
      'shard_examples': arguments.shard_examples,
      'sources': {k: v.source.fingerprint for k, v in loaders.items()},
    }

  def estimate(self, missing) -> int:
    size = math.prod(self._shape) + 4
    return sum(len(s.indices) for s in missing) * size

  def file_name(self, shard) -> str:
    return f'{shard.key}.npy'

  def convert(self, loader, index):
    """Returns (pixels, label, color sums) of an example; None if skipped."""
    from alexnet_jax.data import kernels  # slow to import

    if (example := loader.square(index)) is None:
      return None
    sums = np.zeros(3, np.int64), np.zeros((3, 3), np.int64)
    kernels.add_color_sums(images.as_rgb(example[0]), *sums)
    return *example, sums

  def write(self, path, examples) -> dict:
    """Writes squares as .npy; their number is known at the end only."""
    labels, sums, products = [], np.zeros(3, int), np.zeros((3, 3), int)
    with raw.new_array(path, '|u1', self._shape) as append:
      for pixels, label, (image_sums, image_products) in examples:
        append(pixels[None])
        labels.append(label)
        sums += image_sums
        products += image_products
    return {
      'sha256': _sha256(path),  # from the page cache
      'num_examples': len(labels),
      'labels': labels,
      'sums': sums.tolist(),
      'products': products.tolist(),
    }

  def describe(self, notes) -> None:
    """Writes the manifest, from the notes of each split's shards."""
    splits = {split: self._split(split, own) for split, own in notes.items()}
    manifest = {
      'format': raw.FORMAT,
      'image_size': self._size,
      'channels': self._shape[2],
      'class_names': list(self._loaders['train'].source.class_names),
      'settings': self.settings,
      'splits': splits,
    }
    files.write_json(self.folder / raw.MANIFEST, manifest)

  def _split(self, split, notes):
    source = self._loaders[split].source
    labels = np.array([k for note in notes for k in note['labels']], np.int32)
    path = self.folder / f'{split}-labels.npy'
    with files.replaced_file(path) as temporary, temporary.open('wb') as file:
      np.save(file, labels)
    keys = ('file', 'num_examples', 'sha256')
    return {
      'num_examples': len(labels),
      'source': source.name,
      'source_fingerprint': source.fingerprint,
      'skipped': [name for note in notes for name in note['skipped']],
      'shards': [{key: note[key] for key in keys} for note in notes],
      'labels': {'file': path.name, 'sha256': _sha256(path)},
      'rgb': pixel_statistics.color_statistics(
        len(labels) * self._size**2,
        np.sum([note['sums'] for note in notes], 0),
        np.sum([note['products'] for note in notes], 0),
      ),
    }

  def result(self) -> tuple[dict, dict]:
    """Returns the command's result, and the keys of config.data for it."""
    manifest = raw.read_manifest(self.folder)
    splits = manifest['splits']
    result = {
      'out': str(self.folder),
      'image_size': manifest['image_size'],
      'channels': manifest['channels'],
      'classes': len(manifest['class_names']),
      'splits': {name: info['num_examples'] for name, info in splits.items()},
      'skipped': sum(len(info['skipped']) for info in splits.values()),
    }
    keys = {'source': 'raw', 'path': self.folder}
    return result, keys | ({'channels': 1} if self._shape[2] == 1 else {})


def _sha256(path):
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
