"""What is wrong with, or odd about, one image file."""

import dataclasses
import io
import os

import PIL.Image
import simplejpeg

from alexnet_jax.data import decoding
from alexnet_jax.data.folder import IMAGE_SUFFIXES
from alexnet_jax.errors import UnreadableImageError

_ORIENTATION = 0x0112  # the EXIF tag
_SMALL = 32  # pixels
_SUFFIXES = {  # of what Pillow calls the formats
  'JPEG': ('.jpg', '.jpeg'),
  'MPO': ('.jpg', '.jpeg'),  # JPEGs of phones, with a second picture behind
  'PNG': ('.png',),
  'GIF': ('.gif',),
  'WEBP': ('.webp',),
  'BMP': ('.bmp',),
  'TIFF': ('.tif', '.tiff'),
}
_PNG_DEPTH_AT = 24  # offset of the bits per channel in a PNG
_BY_MODE = {
  '1': ('grayscale',),
  'L': ('grayscale',),
  'LA': ('grayscale', 'alpha'),
  'La': ('grayscale', 'alpha'),
  'P': ('palette',),
  'PA': ('palette', 'alpha'),
  'RGBA': ('alpha',),
  'RGBa': ('alpha',),
  'CMYK': ('cmyk',),
}


@dataclasses.dataclass
class Outcome:
  """What the examination of one image found.

  Attributes:
    split: of the image; None for what is no image, such as a whole file.
    name: of the image or file.
    label: None if it is not known.
    found: pairs of a kind of `findings.KINDS` and a detail.
    digest: see `duplicates.digest`; empty if it could not be read.
    colors: (sums int64 [3], products int64 [3, 3]) or None.
  """

  split: str | None
  name: str
  label: int | None = None
  found: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  digest: bytes = b''
  colors: tuple | None = None


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
  try:
    damage = _damage(encoded)
  except UnreadableImageError as error:
    cut = 'truncated' in str(error).lower()
    return [('truncated' if cut else 'unreadable', str(error))]
  found = [('damaged_jpeg', damage)] if damage else []
  try:
    with PIL.Image.open(io.BytesIO(encoded)) as image:
      return found + _oddities(image, encoded, name)
  except Exception:  # Pillow may stumble where the other decoder did not
    return found


def is_image(path: str) -> bool:
  """Whether a file begins as an image does, whatever its name."""
  try:
    with PIL.Image.open(path):
      return True
  except Exception:  # whatever a file that is no image makes Pillow raise
    return False


def _damage(encoded):
  """What libjpeg says about a JPEG that decodes nevertheless; mostly ''.

  Raises:
    UnreadableImageError: if training could not decode the image.
  """
  if encoded[:2] != b'\xff\xd8':
    decoding.decode(encoded)
    return ''
  try:
    _decode_jpeg(encoded, strict=True)
  except ValueError as error:
    decoding.decode(encoded)
    try:
      _decode_jpeg(encoded, strict=False)
    except ValueError:  # a kind it does not know, which Pillow does
      return ''
    return str(error)
  return ''


def _decode_jpeg(encoded, strict):
  """Reads all data of a JPEG, but computes as few pixels as it can."""
  simplejpeg.decode_jpeg(
    encoded, 'GRAY', min_height=1, min_width=1, min_factor=2, strict=strict
  )


def _oddities(image, encoded, name):
  found = [(kind, '') for kind in _BY_MODE.get(image.mode, ())]
  if 'transparency' in image.info:
    found.append(('alpha', ''))
  if image.mode.startswith('I') or (
    image.format == 'PNG' and encoded[_PNG_DEPTH_AT] == 16
  ):
    found.append(('deep', ''))
  suffix = os.path.splitext(name)[1].lower()
  if suffix in IMAGE_SUFFIXES and suffix not in _SUFFIXES.get(image.format, ()):
    found.append(('wrong_suffix', f'it is {image.format}'))
  if min(image.size) == 1:
    found.append(('one_pixel', '{} x {} pixels'.format(*image.size)))
  elif min(image.size) < _SMALL:
    found.append(('small', '{} x {} pixels'.format(*image.size)))
  # The second picture of an MPO is a preview, no frame.
  if image.format != 'MPO' and getattr(image, 'is_animated', False):
    found.append(('animated', ''))
  if (orientation := _orientation(image)) in range(2, 9):
    found.append(('exif_rotation', f'orientation {orientation}'))
  return found


def _orientation(image):
  try:
    return image.getexif().get(_ORIENTATION, 1)
  except Exception:  # whatever broken EXIF data makes Pillow raise
    return 1
