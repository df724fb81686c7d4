"""Damaged image files: the pixels of an independent decoder, or a refusal.

Files of all formats are damaged in five ways and sent through every decoding
path. Each path runs twice, after images of other colors in the same thread:
what a decoder leaves unwritten differs then.
"""

import collections
import contextlib
import struct
import time
import zlib

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest
import simplejpeg

from alexnet_jax.data import decoding
from alexnet_jax.data.prepare.check import examine
from alexnet_jax.errors import UnreadableImageError
from tests.data.pictures import encode, exif, photo, pillow, upright

# Pillow warns of what it reads all the same.
pytestmark = pytest.mark.filterwarnings('ignore')

ROUNDING = 3  # levels, between two builds of libjpeg
MIN = 40  # pixels of the short side, where JPEGs are decoded at a scale
SLOW = 10.0  # seconds for one file
# Two images that fill the memory of the thread: as much as a file needs, or as
# one whose header lies.
OTHERS = {
  side: [encode(np.full((side, side, 3), n, np.uint8)) for n in (0, 255)]
  for side in (160, 640)
}


def picture(mode='RGB', height=90, width=131):
  """Smooth colors and blocks of noise: damage shows, and JPEG keeps it."""
  rng = np.random.default_rng(height)
  blocks = rng.integers(0, 90, (height // 10 + 1, width // 10 + 1, 3))
  coarse = np.kron(blocks, np.ones((10, 10, 1)))[:height, :width]
  pixels = (photo(height, width) * 0.6 + coarse).astype(np.uint8)
  return PIL.Image.fromarray(pixels).convert(mode)


def make_files():
  """Returns {format: file}."""
  image, gray = picture(), picture('L')
  sixteen = PIL.Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
  files = {
    'JPEG baseline': (image, {}),
    'JPEG restart markers': (image, {'restart_marker_blocks': 5}),
    'JPEG restart rows': (picture(height=160), {'restart_marker_rows': 1}),
    'JPEG progressive': (image, {'progressive': True}),
    'JPEG without conversion': (image, {'keep_rgb': True}),
    'JPEG gray': (gray, {}),
    'JPEG CMYK': (picture('CMYK'), {}),
    'JPEG CMYK progressive': (picture('CMYK'), {'progressive': True}),
    'JPEG EXIF': (image, {'exif': exif(6)}),
    'PNG': (image, {}),
    'PNG 16 bits': (sixteen, {}),
    'PNG EXIF': (image, {'exif': exif(8)}),
    'MPO': (image, {'save_all': True, 'append_images': [gray]}),
    'WEBP': (image, {}),
    'GIF': (image, {}),
    'TIFF': (image, {}),
    'TIFF JPEG': (image, {'compression': 'jpeg'}),
    'BMP': (image, {}),
  }
  return {
    name: encode(made, name.split()[0], quality=90, **options)
    for name, (made, options) in files.items()
  }


def flips(file, rng):
  for _ in range(rng.integers(1, 5)):
    file[rng.integers(len(file))] ^= 1 << rng.integers(8)


def noise(file, rng):
  start = rng.integers(len(file))
  length = min(len(file) - start, int(2 ** rng.uniform(0, 9)))
  file[start : start + length] = rng.bytes(length)


def cut(file, rng):
  del file[rng.integers(1, len(file)) :]
  if rng.random() < 0.5:
    file += b'\xff\xd9'  # as if it were whole


def swapped(file, rng):
  """Two pieces change places; in half of the cases segments of the header."""
  starts = [i for i in range(len(file) - 1) if file[i] == 0xFF and file[i + 1]]
  if len(starts) < 4 or rng.random() < 0.5:
    starts = range(1, len(file))
  a, b, c, d = sorted(int(i) for i in rng.choice(starts, 4, replace=False))
  file[a:d] = file[c:d] + file[b:c] + file[a:b]


def size_lies(file, rng):
  """Other sides in the header of a JPEG or PNG; checksums fit."""
  factor = rng.choice([0, 0.5, 0.9, 1.1, 2, 4, 500])
  both = rng.random() < 0.5

  def write(at, form, change=True):
    (value,) = struct.unpack_from(form, file, at)
    most = 2 ** (8 * struct.calcsize(form)) // 2 - 1
    if change:
      struct.pack_into(form, file, at, min(most, int(value * factor)))

  if file[:2] == b'\xff\xd8':
    frames = (b'\xff\xc0', b'\xff\xc1', b'\xff\xc2')
    start = min(i for marker in frames if (i := file.find(marker)) > 0)
    write(start + 5, '>H')
    write(start + 7, '>H', both)
  elif file[:4] == b'\x89PNG':
    write(16, '>I')
    write(20, '>I', both)
    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, 'big')


DAMAGES = (flips, noise, cut, swapped, size_lies)


def damaged_files(count, seed):
  """Yields (format, damage, damaged file, whole file), all pairs in turn."""
  files = make_files()
  pairs = [(name, damage) for name in files for damage in DAMAGES]
  for number in range(count):
    name, damage = pairs[number % len(pairs)]
    rng = np.random.default_rng((seed, number))
    file = bytearray(files[name])
    damage(file, rng)
    if file and rng.random() < 0.1:
      flips(file, rng)
    yield name, damage.__name__, bytes(file), files[name]


def pillow_truncated(file):
  """Returns the pixels of what Pillow reads of a file that is cut off."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(PIL.ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    return pillow(file)


# What is asked of the decoder where; rows: the share that a crop needs.
PATHS = {
  'evaluation, prepare, predict': {},
  'scaled': {'min_size': MIN},
  'crop': {'rows_needed': lambda height, width: height // 2},
  'crop of all': {'rows_needed': lambda height, width: height},
  'scaled crop': {
    'min_size': MIN,
    'rows_needed': lambda height, width: height // 3,
  },
}


def decoded(file, how, others):
  """Returns what the path decodes after two other images, or the refusal."""
  results = []
  for other in others:
    decoding.decode(other)
    try:
      results.append(decoding.decode(file, **how).copy())
    except UnreadableImageError as error:
      results.append(str(error))
  first, second = results
  if isinstance(first, str):
    assert first == second
    return first
  rows = how.get('rows_needed', lambda height, width: height)
  height, width = first.shape[:2]
  needed = min(height, rows(height, width))
  # A decoder that writes nothing leaves the pixels of another image.
  np.testing.assert_array_equal(first[:needed], second[:needed])
  return first[:needed]


def expected(file, whole):
  """Returns the images that are right: Pillow's, of the file or whole.

  And for JPEGs what libjpeg makes of it at a scale, in memory of its own,
  without a complaint.
  """
  found, end = [pillow(whole)], b''
  if file[:2] == b'\xff\xd8':
    end = b'\xff\xd9'
    for variant in (file, file + end):
      with contextlib.suppress(ValueError):  # it complains
        small = simplejpeg.decode_jpeg(
          variant, 'RGB', min_height=MIN, min_width=MIN, min_factor=2
        )
        found.append(upright(small, variant))
  for decode, variant in (
    (pillow, file),
    (pillow_truncated, file + end),
    (pillow_truncated, without_damaged_exif(file)),
  ):
    with contextlib.suppress(Exception):  # it refuses it
      found.append(decode(variant))
  return found


def without_damaged_exif(file):
  """Returns a PNG without EXIF data of a wrong checksum, which turn nothing."""
  start = file.find(b'eXIf')
  end = start + 4 + int.from_bytes(file[start - 4 : start])
  is_whole = zlib.crc32(file[start:end]).to_bytes(4) == file[end : end + 4]
  if start < 0 or is_whole:
    return file
  return file[: start - 4] + file[end + 4 :]


def difference(result, right, how):
  """Returns by how many levels a result differs from an image, at most."""
  rows = how.get('rows_needed', lambda height, width: height)
  right = right[: rows(*right.shape[:2])]
  if right.shape != result.shape:
    return np.inf
  return np.abs(result.astype(int) - right).max(initial=0)


def check(damage, file, whole):
  """Sends a file through every path; returns `refused`, `equal` or a fault."""
  others = OTHERS[640 if damage == 'size_lies' else 160]
  right = None
  for path, how in PATHS.items():
    start = time.process_time()
    result = decoded(file, how, others)
    if (seconds := time.process_time() - start) > SLOW:
      return f'{path}: {seconds} s'
    refused = isinstance(result, str)
    if not how:
      outcome = 'refused' if refused else 'equal'
      kinds = {kind for kind, _ in examine(file)}
      if refused != ('unreadable' in kinds):
        return f'check says {kinds}, {path}: {outcome}'
    if not refused:
      right = right or expected(file, whole)
      nearest = min(difference(result, image, how) for image in right)
      if nearest > ROUNDING:
        return f'foreign: {path}: {nearest} levels'
  return outcome


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
  ('count', 'seed'),
  [
    (300, 0),
    *(pytest.param(2500, seed, marks=pytest.mark.slow) for seed in (1, 2)),
  ],
)
def test_damaged_files_are_right_or_refused(count, seed):
  outcomes = collections.Counter()
  for name, damage, file, whole in damaged_files(count, seed):
    outcome = check(damage, file, whole)
    assert outcome in ('equal', 'refused'), (name, damage, outcome)
    outcomes[outcome] += 1
  assert min(outcomes.values()) > count / 5
