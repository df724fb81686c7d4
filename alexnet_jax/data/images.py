"""Decode, resize, crop: plain functions of uint8 arrays."""

from collections.abc import Sequence
import dataclasses
import io
import math
import threading

import numpy as np
import PIL.Image
import PIL.ImageOps
import simplejpeg

from alexnet_jax.errors import UnreadableImageError

_JPEG_START, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
# Markers of JPEG segments (ITU-T T.81, table B.1).
_SCAN, _APP1 = 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ORIENTATION = 0x0112  # the EXIF tag
_MAX_KEPT_BUFFER = 1 << 24  # bytes in each thread: a photograph of 5 megapixels
_of_thread = threading.local()


def decode(encoded: bytes, min_size: int = 0) -> np.ndarray:
  """Decodes an image file, upright as its EXIF orientation says.

  Args:
    encoded: the bytes of a JPEG, PNG, WebP, BMP, TIFF or (its first frame)
      GIF file.
    min_size: 0 decodes exactly. Otherwise a JPEG at least twice as large may
      come out smaller, by a factor of 2 or more, but with both sides of at
      least `min_size` pixels: its decoder then skips the finest frequencies
      (libjpeg's scaled DCT), which is several times faster.

  Returns:
    RGB, uint8 [height, width, 3]; gray is repeated, alpha is left out, 16 bits
    become 8. The memory belongs to the thread: its next call overwrites it.

  Raises:
    UnreadableImageError: if the bytes are no image or a truncated JPEG, of
      which decoders otherwise fill the missing part with gray.
  """
  if not encoded:
    raise UnreadableImageError('the file is empty')
  if encoded[:2] != _JPEG_START:
    return _decode_with_pillow(encoded)
  header = _read_jpeg_header(encoded)
  if encoded[-2:] != _JPEG_END and encoded.find(_JPEG_END, header.end) < 0:
    raise UnreadableImageError('the JPEG is truncated')
  if header.channels not in (1, 3):  # CMYK, which Pillow knows how to invert
    return _decode_with_pillow(encoded)
  try:
    image = simplejpeg.decode_jpeg(
      encoded,
      'RGB',
      min_height=min_size,
      min_width=min_size,
      # Only the factors from 2 on save time.
      min_factor=2 if min_size else 1,
      buffer=_decoding_buffer(header.height * header.width * 3),
      # As other decoders do: stray bytes are no reason to refuse an image.
      strict=False,
    )
  except ValueError:  # a kind that this decoder does not know, or broken
    return _decode_with_pillow(encoded)
  if header.orientation == 1:
    return image
  return _upright(image, header.orientation)


def is_plain_jpeg(encoded: bytes) -> bool:
  """Whether a file is a JPEG in colour that needs no turning."""
  if encoded[:2] != _JPEG_START:
    return False
  header = _read_jpeg_header(encoded)
  return header.channels == 3 and header.orientation == 1


def _decoding_buffer(size):
  """Memory of this thread, used again: fresh pages cost more than reading."""
  if size > _MAX_KEPT_BUFFER:
    return np.empty(size, np.uint8)
  kept = getattr(_of_thread, 'buffer', None)
  if kept is None or len(kept) < size:
    kept = _of_thread.buffer = np.empty(max(size, 1 << 20), np.uint8)
  return kept


def _decode_with_pillow(encoded):
  """Reads what simplejpeg cannot."""
  try:
    with PIL.Image.open(io.BytesIO(encoded)) as image:
      upright = PIL.ImageOps.exif_transpose(image)
      if upright.mode == 'F':
        raise UnreadableImageError('its pixels are floating-point numbers')
      if upright.mode.startswith('I'):  # convert would clip 16 bits at 255
        gray = np.asarray(upright).astype(np.int64) >> 8
        upright = PIL.Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))
      return np.array(upright.convert('RGB'))
  except PIL.UnidentifiedImageError as error:
    raise UnreadableImageError('it is no image of a known kind') from error
  except (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    PIL.Image.DecompressionBombError,
  ) as error:
    raise UnreadableImageError(str(error)) from error


@dataclasses.dataclass
class _JpegHeader:
  """What stands before the scan of a JPEG."""

  end: int = 2  # where the scan begins
  height: int = 0
  width: int = 0
  channels: int = 0
  orientation: int = 1  # of EXIF, 1 to 8; 1 is upright


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
      break
    length = encoded[position + 2] << 8 | encoded[position + 3]
    if marker in _FRAMES:
      header.height = encoded[position + 5] << 8 | encoded[position + 6]
      header.width = encoded[position + 7] << 8 | encoded[position + 8]
      header.channels = encoded[position + 9]
    elif marker == _APP1 and encoded.startswith(b'Exif\0\0', position + 4):
      data = encoded[position + 4 : position + 2 + length]
      header.orientation = _orientation_tag(data)
    position += 2 + max(2, length)
  header.end = position
  return header


def _orientation_tag(data):
  exif = PIL.Image.Exif()
  try:
    exif.load(data)
    orientation = exif.get(_ORIENTATION, 1)
  except Exception:  # whatever broken EXIF data makes Pillow raise
    return 1
  return orientation if orientation in range(1, 9) else 1


def _upright(image, orientation):
  """Undoes the EXIF orientation, as PIL.ImageOps.exif_transpose does."""
  if orientation in (5, 6, 7, 8):
    image = image.transpose(1, 0, 2)
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  return np.ascontiguousarray(image)


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
  """Short side to `size`, then the centre: uint8 [size, size, 3].

  This is the paper's preparation (Krizhevsky et al. 2012, section 2). Shrinking
  averages over areas, enlarging interpolates linearly.
  """
  out = np.empty((size, size, 3), np.uint8)
  crop_of_square(image, size, 0, 0, out)
  return out


def crop_of_square(
  image: np.ndarray, size: int, top: int, left: int, out: np.ndarray
) -> None:
  """Writes a window of `centre_square(image, size)` into `out`.

  Equal to cutting it out of the whole square, but computes no more than it.

  Args:
    image: uint8 [height, width, 3].
    size: width of the square, in pixels.
    top, left: corner of the window in the square.
    out: uint8 [rows, columns, 3], overwritten.
  """
  height, width = image.shape[:2]
  full_height, full_width = resized_shape(height, width, size)
  top += (full_height - size) // 2
  left += (full_width - size) // 2
  if (full_height, full_width) == (height, width):
    out[...] = image[top : top + out.shape[0], left : left + out.shape[1]]
    return
  _resample(image, out, top, height / full_height, left, width / full_width)


def resize_short_side(image: np.ndarray, size: int) -> np.ndarray:
  """The whole image with its short side resized to `size`, uint8 [h, w, 3]."""
  height, width = image.shape[:2]
  rows, columns = resized_shape(height, width, size)
  out = np.empty((rows, columns, 3), np.uint8)
  _resample(image, out, 0, height / rows, 0, width / columns)
  return out


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
  """(height, width) of an image whose short side becomes `size`."""
  scale = size / min(height, width)
  return max(size, round(height * scale)), max(size, round(width * scale))


def resize_box(
  image: np.ndarray, box: tuple[int, int, int, int], out: np.ndarray
) -> None:
  """Resizes image[top : top + height, left : left + width] into `out`.

  Args:
    image: uint8 [height, width, 3].
    box: (top, left, height, width) in pixels.
    out: uint8 [rows, columns, 3], overwritten.
  """
  top, left, height, width = box
  window = image[top : top + height, left : left + width]
  _resample(window, out, 0, height / out.shape[0], 0, width / out.shape[1])


def _resample(image, out, first_row, row_scale, first_column, column_scale):
  from alexnet_jax.data import kernels  # slow to import, and not always needed

  kernels.resample(
    np.ascontiguousarray(image),
    out,
    first_row,
    row_scale,
    first_column,
    column_scale,
  )


def random_resized_box(
  height: int,
  width: int,
  corner: Sequence[float],
  attempts: Sequence[Sequence[float]],
  area: tuple[float, float],
  ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
  """The box of a random-resized crop (Szegedy et al. 2014, section 6).

  The first attempt whose box fits is taken, as in torchvision; if none does,
  the largest centre box within the ratios.

  Args:
    height, width: of the image, in pixels.
    corner: two draws in [0, 1): of the row and the column.
    attempts: pairs of draws in [0, 1): of the area and of the logarithm of the
      aspect ratio.
    area: smallest and largest share of the image's area.
    ratio: smallest and largest width / height.

  Returns:
    (top, left, height, width), inside the image.
  """
  low, high = math.log(ratio[0]), math.log(ratio[1])
  for area_draw, ratio_draw in attempts:
    target = height * width * (area[0] + (area[1] - area[0]) * area_draw)
    aspect = math.exp(low + (high - low) * ratio_draw)
    rows = round(math.sqrt(target / aspect))
    columns = round(math.sqrt(target * aspect))
    if 0 < rows <= height and 0 < columns <= width:
      top = int(corner[0] * (height - rows + 1))
      left = int(corner[1] * (width - columns + 1))
      return top, left, rows, columns
  rows = min(height, max(1, round(width / ratio[0])))
  columns = min(width, max(1, round(height * ratio[1])))
  return (height - rows) // 2, (width - columns) // 2, rows, columns


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
  """The central [size, size, ...] of an array [height, width, ...]."""
  top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
  return image[top : top + size, left : left + size]
