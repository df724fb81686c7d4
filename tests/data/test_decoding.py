import io
import struct
import sys
import zlib

from hypothesis import given, settings, strategies as st
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from alexnet_jax.data import decoding
from alexnet_jax.data.prepare import check
from alexnet_jax.errors import UnreadableImageError
from tests.data.pictures import encode, exif, noise, photo, pillow, write
from tests.system import commands


def assert_near_pillow(encoded):
  actual, expected = decoding.decode(encoded), pillow(encoded)
  assert actual.shape == expected.shape
  assert np.abs(actual.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
  ('mode', 'form'),
  [
    *((mode, 'PNG') for mode in ('RGB', 'L', 'P', 'RGBA', 'LA', '1')),
    ('RGB', 'BMP'),
    ('P', 'GIF'),
    ('RGB', 'TIFF'),
    ('RGB', 'WEBP'),
  ],
)
def test_lossless_formats_decode_as_pillow_does(mode, form):
  options = {'lossless': True} if form == 'WEBP' else {}
  encoded = encode(PIL.Image.fromarray(photo()).convert(mode), form, **options)
  np.testing.assert_array_equal(decoding.decode(encoded), pillow(encoded))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('progressive', [False, True])
def test_jpeg_decodes_as_pillow_does_within_rounding(mode, progressive):
  image = PIL.Image.fromarray(photo()).convert(mode)
  assert_near_pillow(encode(image, quality=95, progressive=progressive))


JPEG = encode(photo())


def segment(marker, content):
  return marker + (len(content) + 2).to_bytes(2, 'big') + content


def jpeg_with_thumbnail():
  thumbnail = encode(photo(8, 8))
  return JPEG[:2] + segment(b'\xff\xfe', thumbnail) + JPEG[2:]


def sized(jpeg, height, width):
  """The JPEG with other sides in its header."""
  sides = height.to_bytes(2, 'big') + width.to_bytes(2, 'big')
  start = jpeg.index(b'\xff\xc0') + 5
  return jpeg[:start] + sides + jpeg[start + 4 :]


def chunk(kind, body):
  """A chunk of a PNG."""
  checksum = zlib.crc32(kind + body).to_bytes(4, 'big')
  return len(body).to_bytes(4, 'big') + kind + body + checksum


@pytest.mark.parametrize(
  ('encoded', 'message'),
  [
    (b'', 'empty'),
    (b'not an image', 'no image of a known kind'),
    (JPEG[:-400], 'truncated'),
    (encode(photo(), progressive=True)[:-400], 'truncated'),
    (jpeg_with_thumbnail()[:-400], 'truncated'),
    (encode(photo(), 'PNG')[:200], 'truncated'),
    (JPEG[:-400] + JPEG, 'truncated'),
    *(
      (encode(PIL.Image.new(mode, (5, 5), 200), 'TIFF'), '32-bit pixels')
      for mode in 'IF'
    ),
    # Pillow would run PostScript by Ghostscript, where that is installed.
    (encode(photo(), 'EPS'), 'no image of a known kind'),
    (encode(photo(), 'TGA'), 'no image of a known kind'),
    # Above 178,956,970 pixels, as in Pillow.
    (sized(JPEG, 13_378, 13_378), 'have 13378 x 13378 pixels'),
  ],
)
def test_what_cannot_be_decoded_is_refused(encoded, message):
  with pytest.raises(UnreadableImageError, match=message):
    decoding.decode(encoded)


@pytest.mark.parametrize('sides', [(0, 80), (60, 0), (0, 0)])
def test_a_jpeg_without_height_or_width_is_refused(sides):
  for rows_needed in (None, lambda height, width: 60 // (height * width)):
    with pytest.raises(UnreadableImageError, match='no height or no width'):
      decoding.decode(sized(JPEG, *sides), rows_needed=rows_needed)


@pytest.mark.parametrize('progressive', [False, True])
@pytest.mark.parametrize(
  'end', [b'', b'\xff', JPEG, bytes(9), b'SEFT of a phone', b'SEFT' + JPEG]
)
def test_a_whole_jpeg_without_end_marker_is_read_and_named(progressive, end):
  whole = encode(photo(), progressive=progressive)
  messages = []
  options = {'rows_needed': lambda *_: 20, 'damaged': messages.append}
  if progressive and end in (bytes(9), b'SEFT of a phone'):  # may lack scans
    with pytest.raises(UnreadableImageError, match='truncated'):
      decoding.decode(whole[:-2] + end, **options)
    return
  decoded = decoding.decode(whole[:-2] + end, **options)
  np.testing.assert_array_equal(decoded, pillow(whole))
  assert len(messages) == 1


def test_damage_of_cmyk_is_named():
  image = PIL.Image.fromarray(photo()).convert('CMYK')
  whole, messages = encode(image), []
  decoding.decode(whole, damaged=messages.append)
  assert not messages
  middle = whole.index(b'\xff\xda') + 300
  damaged = whole[:middle] + bytes(20) + whole[middle + 20 :]
  decoded = decoding.decode(damaged, damaged=messages.append)
  np.testing.assert_array_equal(decoded, pillow(damaged))
  assert len(messages) == 1


@pytest.mark.parametrize('trailer', [b'\0trailer', b'\xff\xda video \xff'])
def test_bytes_after_the_end_of_a_jpeg_do_no_harm(trailer):
  for whole in (JPEG, jpeg_with_thumbnail()):
    expected = decoding.decode(whole).copy()
    np.testing.assert_array_equal(decoding.decode(whole + trailer), expected)


def test_sixteen_bits_keep_their_upper_half():
  values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
  encoded = encode(values, 'PNG')
  assert decoding.decode(encoded)[0, :, 1].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_exif_orientation_is_pillows(orientation):
  padding = b'\xff\xe0\x08\x00' + bytes(0x7FE)
  encoded = encode(photo(40, 80), quality=95, exif=exif(orientation))
  # EXIF need not come first.
  assert_near_pillow(encoded[:2] + padding + encoded[2:])


def test_broken_exif_data_leaves_the_image_as_it_is():
  broken = b'Exif\0\0II*\0\xff\xff\xff\xff'
  expected = decoding.decode(JPEG).copy()
  assert expected.any()
  with_exif = JPEG[:2] + segment(b'\xff\xe1', broken) + JPEG[2:]
  decoded = decoding.decode(with_exif)
  np.testing.assert_array_equal(decoded, expected)


XMP = (
  b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/">'
  b'<rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
)


@pytest.mark.parametrize(
  'segments',
  [
    segment(b'\xff\xe1', XMP),
    segment(b'\xff\xe1', exif(6)) + segment(b'\xff\xe1', XMP),
    segment(b'\xff\xe1', exif(3)) + segment(b'\xff\xe1', b'Exif\0\0'),
  ],
)
def test_orientations_of_xmp_and_of_several_segments_are_pillows(segments):
  whole = encode(photo(40, 80), quality=95)
  encoded = whole[:2] + segments + whole[2:]
  with PIL.Image.open(io.BytesIO(encoded)) as image:
    assert image.getexif().get(0x0112) in (3, 6)
  assert_near_pillow(encoded)


@pytest.mark.parametrize(
  'odd',
  [
    chunk(b'eXIf', b'II*'),
    chunk(b'eXIf', exif(1)[6:])[:-1] + b'?',  # a wrong checksum
    chunk(b'zTXt', b'note\0\0' + zlib.compress(bytes(3 << 20))),
    chunk(b'iCCP', b'icc\0\0' + zlib.compress(bytes(3 << 20))),
    chunk(b'tEXt', b'note\0of somebody')[:-1] + b'?',
  ],
)
def test_what_a_png_holds_beside_its_pixels_does_no_harm(odd):
  png = encode(photo(), 'PNG')
  for start in (33, len(png) - 12):  # behind its header, before its end
    encoded = png[:start] + odd + png[start:]
    np.testing.assert_array_equal(decoding.decode(encoded), photo())


def test_a_png_is_turned_as_its_exif_data_say():
  png = encode(photo(), 'PNG', exif=exif(6))
  long = chunk(b'zTXt', b'note\0\0' + zlib.compress(bytes(3 << 20)))
  expected = np.rot90(photo(), -1)
  for encoded in (png, png[:33] + long + png[33:]):
    np.testing.assert_array_equal(decoding.decode(encoded), expected)


def tiff(bands, **others):
  """A gray TIFF of 4 x 3 pixels, by its directory {tag: number}."""
  entries = {256: 4, 257: 3, 258: 8, 262: 1, 273: 200, 277: bands, 279: 12}
  entries |= {int(tag[1:]): value for tag, value in others.items()}
  fields = (struct.pack('<HHII', t, 4, 1, v) for t, v in entries.items())
  directory = struct.pack('<H', len(entries)) + b''.join(fields) + bytes(4)
  return (b'II*\0' + struct.pack('<I', 8) + directory).ljust(400, b'\0')


def test_a_tiff_of_many_bands_is_refused_by_their_number(caplog):
  with pytest.raises(UnreadableImageError, match='has 13 bands'):
    decoding.decode(tiff(13))
  assert decoding.decode(tiff(1)).shape == (3, 4, 3)
  assert not caplog.text


def test_sixteen_bits_of_a_color_tiff_are_noted():
  encoded = tiff(3, t258=16, t262=2)
  encoded = encoded[:200] + bytes([7, 9]) * 36 + encoded[272:]
  assert (decoding.decode(encoded) == 9).all()
  assert check.examine(encoded) == [('deep', '')]


def test_a_tiff_is_turned_once():
  assert decoding.decode(tiff(1, t274=6)).shape == (4, 3, 3)


def test_odd_images_make_no_warnings_without_a_name(tmp_path):
  palette = PIL.Image.fromarray(photo()).convert('P')
  files = {
    'palette.png': encode(palette, 'PNG', transparency=bytes(range(99))),
    'exif.jpg': encode(photo(), exif=b'Exif\0\0II*\0\x08\0\0\0\xff\xff'),
  }
  program = (
    'import sys, pathlib\n'
    'from alexnet_jax.data import decoding\n'
    'for path in sys.argv[1:]:\n'
    '  print(decoding.decode(pathlib.Path(path).read_bytes()).shape)\n'
  )
  paths = [write(tmp_path, files) / name for name in files]
  _, out, err = commands.run(sys.executable, '-c', program, *paths)
  assert len(out.splitlines()) == len(files)
  assert err == ''


@settings(max_examples=30, deadline=None)
@given(
  height=st.integers(1, 400),
  width=st.integers(1, 300),
  rows=st.floats(0, 1),
  subsampling=st.sampled_from([0, 1, 2]),
  mode=st.sampled_from(['RGB', 'L']),
  progressive=st.booleans(),
)
def test_the_needed_rows_are_those_of_the_whole_image(
  height, width, rows, subsampling, mode, progressive
):
  pixels = noise(height, height, width)
  options = {} if mode == 'L' else {'subsampling': subsampling}
  encoded = encode(
    PIL.Image.fromarray(pixels).convert(mode),
    'JPEG',
    progressive=progressive,
    **options,
  )
  wanted = round(rows * height)
  whole = decoding.decode(encoded).copy()
  seen = []
  part = decoding.decode(
    encoded, rows_needed=lambda *shape: seen.append(shape) or wanted
  )
  assert part.shape == whole.shape
  np.testing.assert_array_equal(part[:wanted], whole[:wanted])
  assert seen in ([(height, width)], [] if progressive else None)


def test_rows_that_are_not_needed_are_not_decoded():
  """Else the test above would prove nothing."""
  decoding.decode(encode(PIL.Image.new('RGB', (90, 300)), 'JPEG'))
  part = decoding.decode(encode(noise(0, 300, 90)), rows_needed=lambda *_: 100)
  assert not part[160:].any()  # of the black image before


@pytest.mark.parametrize(('orientation', 'min_size'), [(6, 0), (1, 256)])
def test_turned_and_scaled_images_are_decoded_whole(orientation, min_size):
  encoded = encode(photo(600, 700), exif=exif(orientation))
  whole = decoding.decode(encoded, min_size).copy()
  part = decoding.decode(encoded, min_size, rows_needed=lambda *_: 10)
  np.testing.assert_array_equal(part, whole)
