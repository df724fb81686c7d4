"""Examines one image file: is it damaged, and is it of an unusual kind?"""

import io
import os

from alexnet_jax.data import decoding
from alexnet_jax.data.folder import IMAGE_SUFFIXES
from alexnet_jax.errors import UnreadableImageError

_SMALL = 32  # pixels
_SUFFIXES = {  # by the names of formats in Pillow
  'JPEG': ('.jpg', '.jpeg'),
  'MPO': ('.jpg', '.jpeg'),  # JPEGs of phones, with a second picture behind
  'PNG': ('.png',),
  'GIF': ('.gif',),
  'WEBP': ('.webp',),
  'BMP': ('.bmp',),
  'TIFF': ('.tif', '.tiff'),
}
_PNG_DEPTH_AT = 24  # offset of the bits per channel in a PNG
_TIFF_DEPTH = 258  # tag of the bits per channel
_GRAY, _ALPHA = 'gray: read as RGB', 'transparent: only the colors are read'
_PALETTE, _CMYK = 'with a palette: read as RGB', 'CMYK or YCCK: read as RGB'
_BY_MODE = {  # of Pillow
  '1': (_GRAY,),
  'L': (_GRAY,),
  'LA': (_GRAY, _ALPHA),
  'La': (_GRAY, _ALPHA),
  'P': (_PALETTE,),
  'PA': (_PALETTE, _ALPHA),
  'RGBA': (_ALPHA,),
  'RGBa': (_ALPHA,),
  'CMYK': (_CMYK,),
}


def examine(encoded: bytes, name: str) -> list[tuple[str, str]]:
  """Decodes an image file as training does, and looks at its kind.

  Args:
    encoded: the file.
    name: its name, whose suffix is compared with what the file is; one that
      belongs to no image is not.

  Returns:
    Pairs of a kind of `findings.KINDS` and a detail; of an image that cannot be
    decoded, one that says why.
  """
  if not encoded:
    return [('empty_file', '')]
  damage = []
  try:
    # The smallest scale: all data are read, and few pixels computed.
    decoding.decode(encoded, min_size=1, damaged=damage.append)
  except UnreadableImageError as error:
    cut = 'truncated' in str(error).lower()
    return [('truncated' if cut else 'unreadable', str(error))]
  found = [('damaged_jpeg', message) for message in damage]
  try:
    with decoding.open_image(io.BytesIO(encoded)) as image:
      return found + _oddities(image, encoded, name)
  except Exception:  # Pillow may stumble where the other decoder did not
    return found


def is_image(path: str) -> bool:
  """Returns True if a file begins as an image does, whatever its name."""
  try:
    with decoding.open_image(path):
      return True
  except Exception:  # whatever a file that is no image makes Pillow raise
    return False


def _oddities(image, encoded, name):
  notes = list(_BY_MODE.get(image.mode, ()))
  if 'transparency' in image.info:
    notes.append(_ALPHA)
  if (
    image.mode.startswith('I')
    or (image.format == 'PNG' and encoded[_PNG_DEPTH_AT] == 16)
    or (image.format == 'TIFF' and max(image.tag_v2.get(_TIFF_DEPTH, (8,))) > 8)
  ):
    notes.append('of 16 bits per channel: cut to 8')
  suffix = os.path.splitext(name)[1].lower()
  if suffix in IMAGE_SUFFIXES and suffix not in _SUFFIXES.get(image.format, ()):
    notes.append(f'named {suffix} but {image.format}: read as what they are')
  found = []
  if min(image.size) == 1:
    found.append(('one_pixel', '{} x {} pixels'.format(*image.size)))
  elif min(image.size) < _SMALL:
    notes.append(f'with a side under {_SMALL} pixels: enlarged')
  # The second picture of an MPO is a preview, no frame.
  if image.format != 'MPO' and getattr(image, 'is_animated', False):
    notes.append('with several frames: the first is read')
  if decoding.orientation(image) > 1:
    notes.append('turned by EXIF: read upright')
  return found + [('note', note) for note in notes]
