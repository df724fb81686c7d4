"""Makes the layouts that are measured out of a folder of photographs."""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import simplejpeg

from alexnet_jax.bench.layouts import Layout
from alexnet_jax.bench.layouts import TFDS_NAME
from alexnet_jax.data import decoding
from alexnet_jax.data import images
from alexnet_jax.data.folder import list_folder
from alexnet_jax.errors import UserError

SYNTHETIC = 'synthetic: noise with the spectrum and JPEG size of photographs'
_NOTE = 'photographs.json'
_DISTINCT, _CLASSES = 200, 10  # of the synthetic ones
_QUALITY = 90  # of all JPEGs


def prepare(
  path: str,
  cache: pathlib.Path,
  count: int,
  layouts: list[Layout],
  threads: int,
) -> dict:
  """Makes what is not in the cache yet.

  Args:
    path: folder of images with a subfolder per class; '': synthetic ones.
    cache: folder of the layouts.
    count: photographs in each; they repeat, mirrored every other time, if the
      folder has fewer.
    layouts: which are needed.
    threads: that make them.

  Returns:
    {source, images, distinct, classes, bytes_per_jpeg: {short side: mean}}.

  Raises:
    UserError: if the folder is unfit, or the cache holds other photographs.
  """
  note = cache / _NOTE
  originals = _Synthetic() if not path else _Folder(path)
  wanted = {
    'source': originals.name,
    'fingerprint': originals.fingerprint,
    'images': count,
    'distinct': min(count, len(originals.labels)),
    'classes': len(set(originals.labels)),
  }
  if not note.exists():
    cache.mkdir(parents=True, exist_ok=True)
    if any(cache.iterdir()):
      raise UserError(f'--cache {cache} is not empty and no finished cache')
    print(f'making {count} photographs in {cache}', file=sys.stderr)
    wanted['bytes_per_jpeg'] = _write_jpegs(originals, cache, count, threads)
    note.write_text(json.dumps(wanted))
  made = json.loads(note.read_text())
  if {**made, **wanted} != made:
    raise UserError(
      f'--cache {cache} holds other photographs ({made}, not {wanted}); choose'
      ' another, or delete it'
    )
  for layout in layouts:
    _convert(layout, cache)
  return made


class _Folder:
  """Images of a folder; `train` if it has such a subfolder."""

  def __init__(self, path):
    root = pathlib.Path(path).expanduser()
    train = root / 'train'
    self._source = list_folder(train if train.is_dir() else root)
    self.name = str(root)
    self.fingerprint = self._source.fingerprint
    self.labels = [self._source.class_names[k] for k in self._source.labels]

  def read(self, index):
    return decoding.decode(self._source.read(index)[0])


class _Synthetic:
  """Photograph-like images."""

  name = SYNTHETIC
  fingerprint = '1'
  labels = tuple(f'class_{i % _CLASSES}' for i in range(_DISTINCT))

  def read(self, index):
    """Noise whose power falls with the frequency, as that of photographs."""
    rng = np.random.default_rng(index)
    total = np.zeros((384, 512), np.float32)
    colour = np.zeros((384, 512, 3), np.float32)
    for octave in range(7):
      shape = (3 << octave, 4 << octave)
      amplitude = 64 / 1.65**octave
      total += amplitude * _enlarged(rng.standard_normal(shape))
      if octave < 5:
        for channel in range(3):
          noise = rng.standard_normal(shape)
          colour[..., channel] += amplitude / 3 * _enlarged(noise)
    return np.clip(128 + total[..., None] + colour, 0, 255).astype(np.uint8)


def _enlarged(noise):
  image = PIL.Image.fromarray(noise.astype(np.float32))
  return np.asarray(image.resize((512, 384), PIL.Image.Resampling.BICUBIC))


def _write_jpegs(originals, cache, count, threads):
  """Writes jpeg-320 and jpeg-256; returns the mean size of their files."""
  distinct = len(originals.labels)
  # Fewer than there are: spread over all classes.
  chosen = np.linspace(0, distinct - 1, min(count, distinct)).astype(int)

  def write(number):
    repeat, rank = divmod(number, len(chosen))
    index = int(chosen[rank])
    pixels = originals.read(index)
    if repeat % 2:
      pixels = np.ascontiguousarray(pixels[:, ::-1])
    sizes = []
    for size, image in (
      (320, images.resize_short_side(pixels, 320)),
      (256, images.center_square(pixels, 256)),
    ):
      encoded = simplejpeg.encode_jpeg(image, _QUALITY, 'RGB', '420')
      label = originals.labels[index]
      _write(cache / f'jpeg-{size}/train/{label}/{number:05d}.jpg', encoded)
      # Preparing wants a validation split; one image a class is enough.
      _write(cache / f'jpeg-{size}/val/{label}/any.jpg', encoded)
      sizes.append(len(encoded))
    return sizes

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    sizes = list(pool.map(write, range(count)))
  means = np.mean(sizes, 0)
  return {'320': round(means[0]), '256': round(means[1])}


def _write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def _convert(layout, cache):
  """Makes the layouts that are no folders, by the product's own command."""
  out = cache / layout.folder
  if layout.kind == 'tfds' and not list(out.glob('*/*/dataset_info.json')):
    flags = ('--name', TFDS_NAME, '--quality', _QUALITY)
    folder = f'jpeg-{layout.short_side}'
    _run_prepare('resize', cache / folder, out, layout.short_side, *flags)
  elif layout.kind == 'raw' and not (out / 'manifest.json').exists():
    _run_prepare('raw', cache / 'jpeg-320', out, layout.short_side)


def _run_prepare(command, path, out, size, *flags):
  print(f'making {out}', file=sys.stderr)
  arguments = ('--source', 'folder', '--path', path, '--out', out)
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'alexnet_jax.data.prepare', command),
      *map(str, (*arguments, '--size', size, *flags)),
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  if done.returncode:
    raise UserError(f'making {out} failed:\n{done.stderr}')
