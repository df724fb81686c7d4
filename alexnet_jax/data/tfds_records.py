"""Data sets that TFDS has prepared as array_record, read without TensorFlow."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import re

from alexnet_jax.data.splits import digest
from alexnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """A split of a prepared TFDS image classification set (array_record)."""

  name: str
  records: Sequence
  class_names: Sequence[str]
  fingerprint: str

  @property
  def num_examples(self) -> int:
    return len(self.records)

  def read(self, index: int) -> tuple[bytes, int]:
    record = self.records[index]
    return record['image'], int(record['label'])

  def describe(self, index: int) -> str:
    record = self.records[index]
    file_name = record.get('file_name', b'')
    if isinstance(file_name, bytes):
      file_name = file_name.decode(errors='replace')
    return f'{self.name} record {index} {file_name}'.rstrip()


def tfds_source(name: str, split: str, data_dir: str = '') -> TfdsSource:
  """A split of a TFDS set prepared as array_record; image bytes stay encoded.

  Raises:
    UserError: if the set is not prepared there, or lacks the split or the
      features `image` and `label`.
  """
  import tensorflow_datasets as tfds  # slow to import, and only needed here

  root = pathlib.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  ).expanduser()
  folder = _tfds_folder(root, name)
  builder = tfds.builder_from_directory(folder)
  if {'image', 'label'} - set(builder.info.features):
    raise UserError(
      f'{name} has the features {sorted(builder.info.features)}; training needs'
      " 'image' and 'label'"
    )
  try:
    records = builder.as_data_source(
      split, decoders={'image': tfds.decode.SkipDecoding()}
    )
  except NotImplementedError as error:
    raise UserError(
      f'{folder} is not array_record, which training reads; prepare it into'
      f' another folder: {_prepare_command(name, "OTHER_DIR")}'
    ) from error
  except (ValueError, AssertionError) as error:  # of the split's name or slice
    raise UserError(
      f'{name} in {folder} cannot give the split {split!r} ({error}); its'
      f' splits are {sorted(builder.info.splits)}'
    ) from error
  info = (pathlib.Path(folder) / 'dataset_info.json').read_bytes()
  return TfdsSource(
    f'{name} {split}',
    records,
    tuple(builder.info.features['label'].names),
    digest(info, split.encode()),
  )


def _tfds_folder(root, name):
  """The folder of the newest prepared version of a TFDS set.

  `name` may be NAME/CONFIG; without a config the set must have none, or one.
  """
  found = [
    path.parent
    for path in root.glob(f'{name}/**/dataset_info.json')
    # Not incomplete.ABC_1.0.0, which a build leaves that was killed.
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
  ]
  if len(configs := {folder.parent for folder in found}) > 1:
    raise UserError(
      f'TFDS set {name!r} in {root} has several configs'
      f' ({", ".join(sorted(c.name for c in configs))}): add /CONFIG to'
      ' config.data.tfds_name'
    )
  if not found:
    tars = (
      ' ImageNet needs ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,'
      ' from image-net.org, in a folder of your choice; then'
      if name == 'imagenet2012'
      else ' To prepare it:'
    )
    raise UserError(
      f'no TFDS set {name!r} in {root}.{tars} `{_prepare_command(name, root)}`.'
      ' If it lies elsewhere: --config.data.path=DATA_DIR'
    )

  return str(max(found, key=lambda f: [int(n) for n in f.name.split('.')]))


def _prepare_command(name, root):
  return (
    f'python -m alexnet_jax.data.prepare tfds --name {name}'
    f' --manual_dir DIR --data_dir {root}'
  )
