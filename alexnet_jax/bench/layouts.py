"""The photographs of `bench data`, kept on disk in several layouts.

They are those of a folder of the user, or synthetic ones: noise with the
spectrum of photographs.
"""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import simplejpeg

from alexnet_jax.data import decoding
from alexnet_jax.data import images
from alexnet_jax.data import sources
from alexnet_jax.data.folder import list_folder
from alexnet_jax.errors import UserError

CROP = 224  # width of the random crops, in pixels
TFDS_NAME = 'photographs'
SYNTHETIC = 'synthetic: noise with the spectrum and JPEG size of photographs'
_DISTINCT, _CLASSES = 200, 10  # of the synthetic ones
_QUALITY = 90  # of all JPEGs


@dataclasses.dataclass(frozen=True)
class Task:
  """A layout of the photographs, and what all candidates are given alike.

  Attributes:
    name: as in --layouts.
    kind: `folder` of JPEG files, `tfds` (array_record of JPEGs) or `raw`.
    short_side: that of what is kept, in pixels.
    resize_size: what the short side is resized to before the crop.
    cache: folder that holds all layouts.
    batch_size: examples in a batch.
    threads: threads or processes that a candidate may use.
  """

  name: str
  kind: str
  short_side: int
  resize_size: int
  cache: str = ''
  batch_size: int = 0
  threads: int = 0

  @property
  def path(self) -> pathlib.Path:
    prefix = 'jpeg' if self.kind == 'folder' else self.kind
    return pathlib.Path(self.cache, f'{prefix}-{self.short_side}')

  def open_source(self):
    """Opens all photographs as a source of `data.sources`."""
    return sources.make_source(
      self.kind,
      'train',
      path=str(self.path),
      tfds_name=TFDS_NAME,
      tfds_split='train',
    )


LAYOUTS = {
  layout.name: layout
  for layout in (
    Task('folder-320', 'folder', 320, 320),
    Task('folder-320-to-256', 'folder', 320, 256),
    Task('folder-256', 'folder', 256, 256),
    Task('tfds-320', 'tfds', 320, 320),
    Task('tfds-256', 'tfds', 256, 256),
    Task('raw-256', 'raw', 256, 256),
  )
}


def prepare(path: str, count: int, tasks: Sequence[Task]) -> dict:
  """Makes what is not in the tasks' cache yet.

  Args:
    path: folder of images with a subfolder per class; '': synthetic ones.
    count: photographs in each layout; they repeat, mirrored every other time,
      if the folder has fewer.
    tasks: of one cache.

  Returns:
    {source, fingerprint, images, distinct, classes, bytes_per_jpeg: {short
    side: mean}}.

  Raises:
    UserError: if the folder is unfit, or the cache holds other photographs.
  """
  cache = pathlib.Path(tasks[0].cache)
  note = cache / 'photographs.json'
  if path:
    root = pathlib.Path(path)
    train = root / 'train'
    source = list_folder(train if train.is_dir() else root)
    name, fingerprint = str(root), source.fingerprint
    labels = [source.class_names[label] for label in source.labels]
  else:
    name, fingerprint = SYNTHETIC, '1'
    labels = [f'class_{i % _CLASSES}' for i in range(_DISTINCT)]

  def read(index):
    return decoding.decode(source.read(index)[0]) if path else _noise(index)

  wanted = {
    'source': name,
    'fingerprint': fingerprint,
    'images': count,
    'distinct': min(count, len(labels)),
    'classes': len(set(labels)),
  }
  if not note.exists():
    cache.mkdir(parents=True, exist_ok=True)
    if any(cache.iterdir()):
      raise UserError(f'--cache {cache} is not empty and no finished cache')
    print(f'making {count} photographs in {cache}', file=sys.stderr)
    # Fewer than there are: spread over all classes.
    chosen = np.linspace(0, len(labels) - 1, wanted['distinct']).astype(int)
    with concurrent.futures.ThreadPoolExecutor(tasks[0].threads) as pool:
      sizes = pool.map(
        lambda number: _write_jpegs(number, chosen, read, labels, cache),
        range(count),
      )
      means = np.mean(list(sizes), 0)
    wanted['bytes_per_jpeg'] = {'320': round(means[0]), '256': round(means[1])}
    note.write_text(json.dumps(wanted))
  made = json.loads(note.read_text())
  if {**made, **wanted} != made:
    raise UserError(
      f'--cache {cache} holds other photographs ({made}, not {wanted}); choose'
      ' another, or delete it'
    )
  for task in tasks:
    _convert(task, cache)
  return made


def _noise(index):
  """Returns an image like a photograph: its power falls with frequency."""
  rng = np.random.default_rng(index)

  def enlarged(shape):
    noise = rng.standard_normal(shape).astype(np.float32)
    image = PIL.Image.fromarray(noise)
    return np.asarray(image.resize((512, 384), PIL.Image.Resampling.BICUBIC))

  pixels = np.full((384, 512, 3), 128, np.float32)
  for octave in range(7):
    shape, amplitude = (3 << octave, 4 << octave), 64 / 1.65**octave
    pixels += amplitude * enlarged(shape)[..., None]
    for channel in range(3 if octave < 5 else 0):
      pixels[..., channel] += amplitude / 3 * enlarged(shape)
  return np.clip(pixels, 0, 255).astype(np.uint8)


def _write_jpegs(number, chosen, read, labels, cache):
  """Writes a photograph into jpeg-320 and jpeg-256; returns both sizes."""
  repeat, rank = divmod(number, len(chosen))
  pixels = read(int(chosen[rank]))
  if repeat % 2:
    pixels = np.ascontiguousarray(pixels[:, ::-1])
  label, sizes = labels[chosen[rank]], []
  for size, image in (
    (320, images.resize_short_side(pixels, 320)),
    (256, images.center_square(pixels, 256)),
  ):
    encoded = simplejpeg.encode_jpeg(image, _QUALITY, 'RGB', '420')
    # Preparing wants a validation split; one image a class is enough.
    for name in (f'train/{label}/{number:05d}.jpg', f'val/{label}/any.jpg'):
      path = cache / f'jpeg-{size}' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(encoded)
    sizes.append(len(encoded))
  return sizes


def _convert(task, cache):
  """Makes a layout that is no folder by `alexnet_jax.data.prepare`."""
  out = task.path
  if task.kind == 'tfds':
    command = ['resize', f'--path={cache}/jpeg-{task.short_side}']
    command += ['--name', TFDS_NAME, '--quality', str(_QUALITY)]
    made = out / TFDS_NAME / '1.0.0' / 'dataset_info.json'
  else:
    command = ['raw', f'--path={cache}/jpeg-320']
    made = out / 'manifest.json'
  if task.kind == 'folder' or made.exists():
    return
  print(f'making {out}', file=sys.stderr)
  command += ['--source=folder', f'--out={out}', f'--size={task.short_side}']
  done = subprocess.run(
    [sys.executable, '-m', 'alexnet_jax.data.prepare', *command],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  if done.returncode:
    raise UserError(f'making {out} failed:\n{done.stderr}')
