"""The ways the same photographs lie on a disk, and how each is opened."""

import dataclasses
import pathlib

from alexnet_jax.errors import UserError

CROP = 224  # width of the random crops, in pixels


@dataclasses.dataclass(frozen=True)
class Layout:
  """One way of keeping the photographs.

  Attributes:
    name: as in --layouts.
    title: for people.
    kind: `folder` of JPEG files, `tfds` (array_record of JPEGs) or `raw`.
    folder: where it lies in the cache.
    short_side: of what is kept, in pixels.
    resize_size: what the short side is resized to before the crop.
  """

  name: str
  title: str
  kind: str
  folder: str
  short_side: int
  resize_size: int

  @property
  def resizes(self) -> bool:
    return self.resize_size != self.short_side


LAYOUTS = tuple(
  Layout(*fields)
  for fields in (
    ('folder-320', 'JPEG 320', 'folder', 'jpeg-320', 320, 320),
    ('folder-320-to-256', 'JPEG 320, resized', 'folder', 'jpeg-320', 320, 256),
    ('folder-256', 'JPEG 256 x 256', 'folder', 'jpeg-256', 256, 256),
    ('tfds-320', 'JPEG 320, TFDS', 'tfds', 'tfds-320', 320, 320),
    ('tfds-256', 'JPEG 256 x 256, TFDS', 'tfds', 'tfds-256', 256, 256),
    ('raw-256', 'raw 256 x 256', 'raw', 'raw-256', 256, 256),
  )
)
TFDS_NAME = 'photographs'


@dataclasses.dataclass(frozen=True)
class Task:
  """What is measured: a layout, and what all contenders are given alike.

  Attributes:
    layout: of the photographs.
    cache: folder that holds the layouts.
    batch_size: examples in a batch.
    threads: threads or processes that a contender may use.
  """

  layout: Layout
  cache: str
  batch_size: int
  threads: int

  @property
  def path(self) -> pathlib.Path:
    return pathlib.Path(self.cache, self.layout.folder)

  def to_json(self) -> dict:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: dict) -> 'Task':
    return cls(**{**values, 'layout': Layout(**values['layout'])})


def choose(names: str) -> list[Layout]:
  """The layouts of a comma-separated list; all of them if it is empty."""
  known = {layout.name: layout for layout in LAYOUTS}
  chosen = [name for name in names.split(',') if name]
  if unknown := [name for name in chosen if name not in known]:
    raise UserError(f'--layouts: {unknown} are none of {sorted(known)}')
  return [known[name] for name in chosen or known]


def open_source(task: Task):
  """A source as `data.sources.Source` describes it, of all photographs."""
  kind, path = task.layout.kind, str(task.path)
  if kind == 'folder':
    from alexnet_jax.data.folder import folder_source

    return folder_source(path, 'train')
  if kind == 'tfds':
    from alexnet_jax.data.tfds_records import tfds_source

    return tfds_source(TFDS_NAME, 'train', path)
  from alexnet_jax.data.raw import raw_source

  return raw_source(path, 'train')
