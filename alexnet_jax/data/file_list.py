"""Files that a command names, to be told what they show."""

from collections.abc import Sequence
import dataclasses
import logging
import os

from alexnet_jax.data.folder import IMAGE_SUFFIXES
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class FileList:
  """Image files of unknown classes: their labels are 0.

  It is a source (see `sources`) without a fingerprint, as nothing is trained
  on it.
  """

  paths: Sequence[str]
  class_names: Sequence[str]

  @property
  def name(self) -> str:
    return f'{len(self.paths)} files'

  @property
  def num_examples(self) -> int:
    return len(self.paths)

  def read(self, index: int) -> tuple[bytes, int]:
    try:
      with open(self.paths[index], 'rb') as file:
        return file.read(), 0
    except OSError as error:
      raise UnreadableImageError(error.strerror) from error

  def describe(self, index: int) -> str:
    return self.paths[index]


def find_images(paths: Sequence[str]) -> list[str]:
  """The image files that `paths` name, in that order.

  A file counts whatever its name. A folder stands for all files below it whose
  suffix is one of images, sorted; hidden ones are left out.

  Raises:
    UserError: if a path does not exist, or if there is no image at all.
    OSError: if a folder cannot be listed.
  """
  if missing := [path for path in paths if not os.path.exists(path)]:
    raise UserError(
      f'there is no file or folder {", ".join(map(repr, missing))}'
    )
  found = []
  for path in paths:
    images = sorted(_images_below(path)) if os.path.isdir(path) else [path]
    if not images:
      logging.warning('%s: no images (%s)', path, ' '.join(IMAGE_SUFFIXES))
    found += images
  if not found:
    raise UserError(
      f'no image in {", ".join(map(repr, paths))}; name image files, or folders'
      f' with files that end in {", ".join(IMAGE_SUFFIXES)}'
    )
  return found


def _images_below(folder):
  def fail(error):
    raise error

  for place, folders, files in os.walk(folder, onerror=fail):
    folders[:] = [name for name in folders if name[0] != '.']
    for name in files:
      path = os.path.join(place, name)
      is_image = name[0] != '.' and name.lower().endswith(IMAGE_SUFFIXES)
      if is_image and os.path.isfile(path):
        yield path
