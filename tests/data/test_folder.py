import numpy as np
import pytest

from alexnet_jax.data import folder
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError
from tests.data.pictures import encode
from tests.data.pictures import noise
from tests.data.pictures import write


@pytest.fixture
def tree(tmp_path):
  names = 'b.PNG a.jpg notes.txt .hidden.png x/c.tiff x/y/d.webp .cache/e.png'
  write(tmp_path, dict.fromkeys([*names.split(), 'empty/readme'], b''))
  (tmp_path / 'dangling.png').symlink_to(tmp_path / 'gone')
  return tmp_path


def test_folders_are_walked_and_files_taken_as_they_are(tree):
  notes = str(tree / 'notes.txt')
  found = folder.find_images([notes, str(tree), notes, str(tree / 'x')])
  below = [f'{tree}/{n}' for n in ('a.jpg', 'b.PNG', 'x/c.tiff', 'x/y/d.webp')]
  assert found == [notes, *below, notes, *below[2:]]


def test_what_is_missing_is_named(tree):
  paths = [str(tree), str(tree / 'no.png'), str(tree / 'dangling.png'), '']
  with pytest.raises(UserError, match=r"no\.png', .*dangling\.png', ''$"):
    folder.find_images(paths)


def test_folders_without_images(tree, caplog):
  with pytest.raises(UserError, match=r'no image in .*empty.*webp'):
    folder.find_images([str(tree / 'empty')])
  found = folder.find_images([str(tree / 'empty'), str(tree / 'a.jpg')])
  assert found == [str(tree / 'a.jpg')]
  assert 'empty: no images' in caplog.text


def test_a_loader_tells_why_a_file_cannot_be_used(tmp_path):
  good, junk = tmp_path / 'good.png', tmp_path / 'junk'
  pixels = noise(0, 9, 8)
  good.write_bytes(encode(pixels, 'PNG'))
  junk.write_bytes(b'junk')
  paths = [str(p) for p in (good, junk, tmp_path / 'gone', tmp_path)]
  source = folder.FileList(paths, ('a', 'b'))
  loader = Loader(source, 8, unreadable='skip')
  read = [loader.pixels(i) for i in range(source.num_examples)]
  np.testing.assert_array_equal(read[0][0], pixels)
  assert read[0][1] == 0
  assert read[1:] == [None] * 3
  assert loader.unreadable == {
    str(junk): 'it is no image of a known kind',
    str(tmp_path / 'gone'): 'No such file or directory',
    str(tmp_path): 'Is a directory',
  }
  with pytest.raises(UnreadableImageError, match='gone: No such file'):
    Loader(source, 8).pixels(2)
