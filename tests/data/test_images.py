import io

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data import images
from alexnet_jax.errors import UnreadableImageError


def photo(height=60, width=80):
  """Smooth colours, which JPEG keeps well."""
  rows, columns = np.mgrid[:height, :width]
  return np.stack(
    [rows * 255 // height, columns * 255 // width, (rows + columns) % 97],
    axis=-1,
  ).astype(np.uint8)


def encode(image, form, **options):
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def pillow(encoded):
  with PIL.Image.open(io.BytesIO(encoded)) as image:
    return np.asarray(image.convert('RGB'))


@pytest.mark.parametrize(
  ('mode', 'form'),
  [
    ('RGB', 'PNG'),
    ('L', 'PNG'),
    ('P', 'PNG'),
    ('RGBA', 'PNG'),
    ('LA', 'PNG'),
    ('1', 'PNG'),
    ('RGB', 'BMP'),
    ('P', 'GIF'),
    ('RGB', 'TIFF'),
  ],
)
def test_lossless_formats_decode_as_pillow_does(mode, form):
  encoded = encode(PIL.Image.fromarray(photo()).convert(mode), form)
  np.testing.assert_array_equal(images.decode(encoded), pillow(encoded))


@pytest.mark.parametrize(
  ('mode', 'options'),
  [
    ('RGB', {}),
    ('RGB', {'progressive': True}),
    ('L', {}),
    ('CMYK', {}),
  ],
)
def test_jpeg_decodes_as_pillow_does_within_rounding(mode, options):
  encoded = encode(
    PIL.Image.fromarray(photo()).convert(mode), 'JPEG', quality=95, **options
  )
  difference = images.decode(encoded).astype(int) - pillow(encoded)
  assert np.abs(difference).max() <= 3


def test_webp_decodes_as_pillow_does():
  encoded = encode(PIL.Image.fromarray(photo()), 'WEBP', lossless=True)
  np.testing.assert_array_equal(images.decode(encoded), pillow(encoded))


def test_exif_orientation_turns_the_image():
  image = PIL.Image.fromarray(photo(40, 80))
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees
  encoded = encode(image, 'JPEG', quality=95, exif=exif.tobytes())
  turned = images.decode(encoded)
  assert turned.shape == (80, 40, 3)
  expected = np.rot90(pillow(encoded), -1).astype(int)
  assert np.abs(turned - expected).max() <= 3


def test_a_png_named_jpg_is_a_png():
  encoded = encode(PIL.Image.fromarray(photo()), 'PNG')
  np.testing.assert_array_equal(images.decode(encoded), photo())


JPEG = encode(PIL.Image.fromarray(photo()), 'JPEG')


def jpeg_with_thumbnail():
  thumbnail = encode(PIL.Image.fromarray(photo(8, 8)), 'JPEG')
  comment = b'\xff\xfe' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
  whole = encode(PIL.Image.fromarray(photo()), 'JPEG')
  return whole[:2] + comment + whole[2:]


@pytest.mark.parametrize(
  ('encoded', 'message'),
  [
    (b'', 'empty'),
    (b'not an image', 'no image of a known kind'),
    (encode(PIL.Image.fromarray(photo()), 'JPEG')[:-400], 'truncated'),
    (jpeg_with_thumbnail()[:-400], 'truncated'),
    (encode(PIL.Image.fromarray(photo()), 'PNG')[:200], 'truncated'),
  ],
)
def test_what_cannot_be_decoded_is_refused(encoded, message):
  with pytest.raises(UnreadableImageError, match=message):
    images.decode(encoded)


@pytest.mark.parametrize('whole', [JPEG, jpeg_with_thumbnail()])
@pytest.mark.parametrize('trailer', [b'\0trailer', b'\xff\xda video \xff'])
def test_bytes_after_the_end_of_a_jpeg_do_no_harm(whole, trailer):
  np.testing.assert_array_equal(
    images.decode(whole + trailer), images.decode(whole)
  )


def test_centre_square_of_the_right_size_only_cuts():
  image = photo(60, 80)
  np.testing.assert_array_equal(
    images.centre_square(image, 60), image[:, 10:70]
  )


def test_centre_square_halves_by_averaging():
  image = photo(8, 12)
  blocks = image.reshape(4, 2, 6, 2, 3).astype(float).mean((1, 3))
  actual = images.centre_square(image, 4)
  assert np.abs(actual - blocks[:, 1:5]).max() <= 0.5


@settings(max_examples=60, deadline=None)
@given(
  height=st.integers(1, 400),
  width=st.integers(1, 400),
  size=st.integers(1, 64),
)
def test_centre_square_has_its_size(height, width, size):
  square = images.centre_square(np.zeros((height, width, 3), np.uint8), size)
  assert square.shape == (size, size, 3)
  assert square.dtype == np.uint8
