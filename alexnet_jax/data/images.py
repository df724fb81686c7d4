"""Decode, resize, crop and flip: plain functions of uint8 arrays."""

import io

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from alexnet_jax.errors import UnreadableImageError

# The batch is split over threads outside; OpenCV's own would only compete.
cv2.setNumThreads(1)

_JPEG_START, _JPEG_END, _JPEG_SCAN = b'\xff\xd8', b'\xff\xd9', b'\xff\xda'


def decode(encoded: bytes) -> np.ndarray:
  """Decodes an image file, upright as its EXIF orientation says.

  Args:
    encoded: the bytes of a JPEG, PNG, WebP, BMP, TIFF or (its first frame)
      GIF file.

  Returns:
    RGB, uint8 [height, width, 3]; gray is repeated, alpha is left out.

  Raises:
    UnreadableImageError: if the bytes are no image or a truncated JPEG, of
      which decoders otherwise fill the missing part with gray.
  """
  if not encoded:
    raise UnreadableImageError('the file is empty')
  if _is_truncated_jpeg(encoded):
    raise UnreadableImageError('the JPEG is truncated')
  try:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
  except cv2.error as error:
    raise UnreadableImageError(f'OpenCV: {error.err}') from error
  return _decode_with_pillow(encoded) if image is None else image


def _decode_with_pillow(encoded):
  """Reads what OpenCV cannot."""
  try:
    with PIL.Image.open(io.BytesIO(encoded)) as image:
      return np.array(PIL.ImageOps.exif_transpose(image).convert('RGB'))
  except PIL.UnidentifiedImageError as error:
    raise UnreadableImageError('it is no image of a known kind') from error
  except (OSError, ValueError, SyntaxError, EOFError) as error:
    raise UnreadableImageError(str(error)) from error


def _is_truncated_jpeg(encoded):
  if encoded[:2] != _JPEG_START or encoded[-2:] == _JPEG_END:
    return False
  # Bytes may follow the end marker, and the header may hold a thumbnail with
  # an end of its own: look for one behind the start of the image's own scan.
  position = 2
  while encoded[position : position + 2] not in (_JPEG_SCAN, b''):
    length = int.from_bytes(encoded[position + 2 : position + 4], 'big')
    position += 2 + max(2, length)
  return encoded.find(_JPEG_END, position) < 0


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
  """Short side to `size`, then the centre: uint8 [size, size, 3].

  This is the paper's preparation (Krizhevsky et al. 2012, section 2). Shrinking
  averages over areas, enlarging interpolates linearly.
  """
  height, width = image.shape[:2]
  if min(height, width) != size:
    scale = size / min(height, width)
    shape = max(size, round(width * scale)), max(size, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, shape, interpolation=method)
    height, width = image.shape[:2]
  top, left = (height - size) // 2, (width - size) // 2
  return image[top : top + size, left : left + size]


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
  """The central [size, size, ...] of an array [height, width, ...]."""
  top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
  return image[top : top + size, left : left + size]


def random_crop_and_flip(
  image: np.ndarray,
  out: np.ndarray,
  draws: np.ndarray,
  *,
  crop: bool = True,
  flip: bool = True,
) -> None:
  """Writes a random crop of `image`, mirrored or not, into `out`.

  Args:
    image: uint8 [height, width, 3], at least as large as `out`.
    out: uint8 [size, size, 3], overwritten.
    draws: three numbers in [0, 1): crop row, crop column, flip (below 0.5).
    crop: False takes the centre.
    flip: False never mirrors.
  """
  size = out.shape[0]
  free_rows, free_columns = image.shape[0] - size, image.shape[1] - size
  if crop:
    top = int(draws[0] * (free_rows + 1))
    left = int(draws[1] * (free_columns + 1))
  else:
    top, left = free_rows // 2, free_columns // 2
  window = image[top : top + size, left : left + size]
  if flip and draws[2] < 0.5:
    cv2.flip(window, 1, dst=out)
  else:
    out[...] = window
