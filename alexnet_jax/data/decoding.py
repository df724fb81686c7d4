"""Decoding of image files into uint8 arrays."""

from collections.abc import Callable
import dataclasses
import io
import re
import threading
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
import simplejpeg

from alexnet_jax.errors import UnreadableImageError

# The kinds of images, by Pillow's names; its JPEG opens MPO, the JPEGs of
# phones, as well. Its others include programs (PostScript) and many parsers
# that nobody's photographs need.
FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF')
# Its warnings about odd images do not say which; `prepare check` does.
warnings.filterwarnings('ignore', module=r'PIL\.')

_JPEG_START, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
_ANOTHER_JPEG = re.compile(b'\xff\xd8\xff[\xdb\xe0-\xef]')
_PNG_START = b'\x89PNG\r\n\x1a\n'
_TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0')  # the last with long offsets
# Markers of JPEG segments (ITU-T T.81, table B.1).
_SCAN, _APP1 = 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)  # Huffman-coded
# libjpeg's first warning about rows that are whole, before others.
_STRAY_ROWS = re.compile('extraneous bytes before marker 0xd[0-79]')
_UNWRITTEN = [1, 254, 3]  # a rare color; one of an image costs time only
_LARGEST_BLOCK = 32  # rows that are coded together, at most
_ORIENTATION = 0x0112  # the EXIF tag
_MAX_KEPT_BUFFER = 1 << 24  # bytes in each thread: a photograph of 5 megapixels
# As in Pillow, beyond it a file is taken for a trap.
_MOST_PIXELS = 2 * PIL.Image.MAX_IMAGE_PIXELS
_of_thread = threading.local()


def decode(
  encoded: bytes,
  min_size: int = 0,
  rows_needed: Callable[[int, int], int] | None = None,
  damaged: Callable[[str], None] = lambda message: None,
) -> np.ndarray:
  """Decodes an image file, upright as its EXIF orientation says.

  Args:
    encoded: the bytes of a file of one of `FORMATS`; of several frames the
      first is read.
    min_size: 0 decodes exactly. Otherwise a JPEG at least twice as large may
      come out smaller, by a factor of 2 or more, but with both sides of at
      least `min_size` pixels: its decoder then skips the finest frequencies
      (libjpeg's scaled DCT), which is several times faster. Of a smooth image
      the square made of it then differs by 2 levels of 255 in the mean, of one
      that is a multiple of the square's size by less than 1; fine structures,
      such as text or stripes of 3 pixels, by 10 to 60.
    rows_needed: function of the image's (height, width) that returns how many
      rows are needed, from the top; the others may come out arbitrary. A JPEG
      is decoded from top to bottom, so it can end there. None: all rows.
    damaged: called with the decoder's message about a JPEG that Pillow decodes
      in spite of stray bytes, or of missing ones, which become gray. Not called
      for damage below the rows that are decoded.

  Returns:
    RGB, uint8 [height, width, 3]; gray is repeated, alpha is left out, 16 bits
    become 8. The memory belongs to the thread: its next call overwrites it.

  Raises:
    UnreadableImageError: if the bytes are no image, a JPEG that is cut off or
      that Pillow does not decode, or an image of so many pixels that it must be
      a trap.
  """
  if not encoded:
    raise UnreadableImageError('the file is empty')
  if encoded[:2] != _JPEG_START:
    return _decode_with_pillow(encoded)
  header = _read_jpeg_header(encoded)
  if header.height * header.width > _MOST_PIXELS:
    raise UnreadableImageError(
      f'it claims to have {header.width} x {header.height} pixels'
    )
  if header.channels not in (1, 3, 4):  # a header that makes no sense
    return _decode_with_pillow(encoded)
  if not header.height * header.width:
    raise UnreadableImageError('its header gives no height or no width')
  has_end = encoded[-2:] == _JPEG_END or encoded.find(_JPEG_END, header.end) > 0
  if rows_needed and has_end and not header.will_be_scaled(min_size):
    image = _decode_top(encoded, header, rows_needed)
    if image is not None:
      return image
  # Pillow knows how to invert CMYK; here its smallest scale tells of damage.
  is_cmyk = header.channels == 4
  min_size = 1 if is_cmyk else min_size
  problem = '' if has_end else 'the end marker is missing'
  ended = encoded if has_end else encoded + _JPEG_END
  try:
    image = simplejpeg.decode_jpeg(
      ended,
      'RGB',
      min_height=min_size,
      min_width=min_size,
      # Only the factors from 2 on save time.
      min_factor=2 if min_size else 1,
      buffer=_decoding_buffer(header.height * header.width * 3),
    )
  except ValueError as error:
    image, problem = _decode_damaged(encoded, header, has_end), str(error)
  else:
    image = (
      _decode_with_pillow(ended)
      if is_cmyk
      else _upright(image, header.orientation(encoded))
    )
  if problem:
    damaged(problem)
  return image


def _decode_damaged(encoded, header, has_end):
  """Reads a JPEG that simplejpeg finds damaged, or raises.

  Not by simplejpeg with `strict=False`: after a warning libjpeg's fatal errors
  pass for warnings there, and leave what the buffer held before.
  """
  other = _ANOTHER_JPEG.search(encoded, header.end)
  if other and encoded.find(_JPEG_END, header.end, other.start()) < 0:
    # It lies in a trailer; this one ends somewhere before.
    return decode(encoded[: other.start()])
  # Pillow sees whether all rows are there, but not all of several scans.
  if not (has_end or header.is_sequential):
    raise UnreadableImageError('the JPEG is truncated')
  return _decode_with_pillow(encoded)


def _decode_top(encoded, header, rows_needed):
  """Returns the image without its lower rows; None if that is not possible."""
  height, width = header.height, header.width
  is_plain = header.is_sequential and header.channels != 4
  if not is_plain or header.orientation(encoded) != 1:
    return None
  # Colors are interpolated between rows: take more than reach into the wanted.
  rows = rows_needed(height, width) + _LARGEST_BLOCK
  if rows >= height:
    return None
  offset = header.height_at
  # A decoder believes the height in the header, and ignores what follows.
  shortened = encoded[:offset] + rows.to_bytes(2, 'big') + encoded[offset + 2 :]
  buffer = _decoding_buffer(height * width * 3)
  last_pixel = buffer[: rows * width * 3][-3:]
  last_pixel[:] = _UNWRITTEN
  try:
    simplejpeg.decode_jpeg(shortened, 'RGB', buffer=buffer)
  except ValueError as error:
    # It names its first warning, or the error that it stopped at. The rows that
    # follow are stray bytes to it. What it finds in the header keeps it from
    # decoding.
    is_whole = _STRAY_ROWS.search(str(error))
    if not is_whole or last_pixel.tolist() == _UNWRITTEN:
      return None
  return buffer[: height * width * 3].reshape(height, width, 3)


def is_plain_jpeg(encoded: bytes) -> bool:
  """Returns True if a file is a JPEG in color that needs no turning."""
  if encoded[:2] != _JPEG_START:
    return False
  header = _read_jpeg_header(encoded)
  return header.channels == 3 and header.orientation(encoded) == 1


def _decoding_buffer(size):
  """Returns memory of this thread: fresh pages cost more than reading."""
  if size > _MAX_KEPT_BUFFER:
    return np.empty(size, np.uint8)
  kept = getattr(_of_thread, 'buffer', None)
  if kept is None or len(kept) < size:
    kept = _of_thread.buffer = np.empty(max(size, 1 << 20), np.uint8)
  return kept


def open_image(file) -> PIL.Image.Image:
  """Opens a path or file with Pillow, if it is one of `FORMATS`."""
  return PIL.Image.open(file, formats=FORMATS)


def orientation(image: PIL.Image.Image) -> int:
  """Returns the orientation of EXIF or XMP, 1 to 8; 1 is upright."""
  try:
    found = image.getexif().get(_ORIENTATION, 1)
  except Exception:  # whatever broken EXIF data makes Pillow raise
    return 1
  return found if found in range(1, 9) else 1


def _has_16_bits(image):
  """Returns True for gray of 16 bits; UnreadableImageError for that of 32."""
  sixteen = image.mode.startswith('I;16') or (
    image.mode == 'I' and image.format == 'PNG'
  )
  if image.mode in ('I', 'F') and not sixteen:
    raise UnreadableImageError(
      f'nothing tells the range of its 32-bit pixels (mode {image.mode})'
    )
  return sixteen


def _decode_with_pillow(encoded):
  """Reads what simplejpeg cannot."""
  try:
    if encoded[:4] in _TIFF_STARTS:
      _check_bands(encoded)
    return _pixels(encoded)
  except UnreadableImageError:
    raise
  except Exception as error:  # broken files make its parsers raise anything
    if encoded.startswith(_PNG_START):
      try:
        return _pixels(_without_texts(encoded))
      except Exception:  # then the first error tells more
        pass
    if isinstance(error, PIL.UnidentifiedImageError):
      raise UnreadableImageError('it is no image of a known kind') from error
    raise UnreadableImageError(f'{type(error).__name__}: {error}') from error


def _pixels(encoded):
  with open_image(io.BytesIO(encoded)) as image:
    return image_pixels(image)


def image_pixels(image: PIL.Image.Image) -> np.ndarray:
  """Returns the pixels of an opened image; see `decode`."""
  sixteen_bits = _has_16_bits(image)
  image.load()  # which may turn it
  if sixteen_bits:  # convert would clip them at 255
    gray = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
    pixels = np.repeat(gray[..., None], 3, axis=2)
  else:
    pixels = np.array(image.convert('RGB'))
  return _upright(pixels, orientation(image))


def _check_bands(tiff):
  """Names the bands of a TIFF that Pillow calls no image."""
  size = 16 if tiff[:4] == _TIFF_STARTS[-1] else 8
  directory = PIL.TiffImagePlugin.ImageFileDirectory_v2(tiff[:size])
  file = io.BytesIO(tiff)
  file.seek(directory.next)
  directory.load(file)
  bands = directory.get(PIL.TiffImagePlugin.SAMPLESPERPIXEL, 1)
  if bands > PIL.TiffImagePlugin.MAX_SAMPLESPERPIXEL:
    raise UnreadableImageError(f'it has {bands} bands, not those of a picture')


def _without_texts(png):
  """Returns a PNG without chunks that hold neither pixels nor sound EXIF data.

  Pillow refuses an image for a text or color profile that is long or damaged.
  """
  kept, start = [_PNG_START], len(_PNG_START)
  while start < len(png):
    end = start + 12 + int.from_bytes(png[start : start + 4])
    kind, checksum = png[start + 4 : start + 8], png[end - 4 : end]
    is_exif = kind == b'eXIf' and (
      zlib.crc32(png[start + 4 : end - 4]) == int.from_bytes(checksum)
    )
    if kind[:1].isupper() or is_exif:  # upper case: critical
      kept.append(png[start:end])
    start = end
  return b''.join(kept)


@dataclasses.dataclass
class _JpegHeader:
  """The header of a JPEG: all that stands before its scan."""

  end: int = 2  # where the scan begins
  height: int = 0
  width: int = 0
  height_at: int = 0  # where the height stands
  channels: int = 0
  is_sequential: bool = False  # a single scan, from top to bottom
  may_be_turned: bool = False

  def will_be_scaled(self, min_size: int) -> bool:
    """Returns True if a factor of 2 or more leaves `min_size` pixels."""
    return 0 < min_size <= -(-min(self.height, self.width) // 2)

  def orientation(self, encoded: bytes) -> int:
    """Returns the orientation of the JPEG; see the function."""
    if not self.may_be_turned:
      return 1
    try:
      with open_image(io.BytesIO(encoded)) as image:
        return orientation(image)
    except Exception:  # whatever a broken header makes Pillow raise
      return 1


def _read_jpeg_header(encoded):
  """Reads the segments of a JPEG up to its scan.

  Thumbnails lie inside of segments: what is behind the scan's start belongs to
  the image itself. A damaged header ends where it stops making sense.
  """
  header = _JpegHeader()
  position, size = 2, len(encoded)
  while position + 9 < size and encoded[position] == 0xFF:
    marker = encoded[position + 1]
    if marker == 0xFF:  # padding
      position += 1
      continue
    if marker == _SCAN:
      one_scan = encoded[position + 4] == header.channels
      header.is_sequential = header.is_sequential and one_scan
      break
    length = encoded[position + 2] << 8 | encoded[position + 3]
    if marker in _FRAMES:
      header.is_sequential = marker in _SEQUENTIAL_FRAMES
      header.height_at = position + 5
      header.height = encoded[position + 5] << 8 | encoded[position + 6]
      header.width = encoded[position + 7] << 8 | encoded[position + 8]
      header.channels = encoded[position + 9]
    elif marker == _APP1:  # of EXIF or XMP
      header.may_be_turned = True
    position += 2 + max(2, length)
  header.end = position
  return header


def _upright(image, orientation):
  """Undoes the EXIF orientation, as PIL.ImageOps.exif_transpose does."""
  if orientation == 1:
    return image
  if orientation in (5, 6, 7, 8):
    image = image.transpose(1, 0, 2)
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  return np.ascontiguousarray(image)
