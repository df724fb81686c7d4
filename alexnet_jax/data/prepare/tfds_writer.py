"""Writes a set in the format of TFDS (array_record), without TensorFlow."""

from collections.abc import Iterable
from collections.abc import Sequence
import pathlib

from alexnet_jax.data import tfds_records
from alexnet_jax.data.prepare import shards

# One record a chunk for random access; JPEGs do not compress further.
_WRITER_OPTIONS = 'group_size:1,uncompressed'
INFO = 'dataset_info.json'  # makes a folder a set, for TFDS and for us


def file_name(name: str, shard: shards.Shard) -> str:
  """What TFDS calls a shard's file."""
  return (
    f'{name}-{shard.split}.array_record-{shard.number:05d}-of-{shard.count:05d}'
  )


def serialize(encoded: bytes, label: int, image_name: str) -> bytes:
  """An example as a tf.train.Example."""
  message = tfds_records.example_class()()
  features = message.features.feature
  features['image'].bytes_list.value.append(encoded)
  features['label'].int64_list.value.append(label)
  features['file_name'].bytes_list.value.append(
    image_name.encode(errors='surrogateescape')
  )
  return message.SerializeToString(deterministic=True)


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> dict:
  """Writes an ArrayRecord file; returns {num_examples, num_bytes}."""
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
  count = size = 0
  try:
    for record in records:
      writer.write(record)
      count, size = count + 1, size + len(record)
  finally:
    writer.close()
  return {'num_examples': count, 'num_bytes': size}


def describe(
  out: shards.Output,
  name: str,
  version: str,
  class_names: Sequence[str],
  notes: dict[str, list[dict]],
) -> None:
  """Writes dataset_info.json, which makes the set count, and features.json.

  Args:
    out: the folder, with all shards.
    name, version: of the set.
    class_names: in the order of the labels.
    notes: of each split, what `write_shard` returned for its shards.
  """
  import tensorflow_datasets as tfds  # slow to import, and only needed here

  infos = []
  for split, own in notes.items():
    template = tfds.core.ShardedFileTemplate(
      data_dir=out.folder,
      dataset_name=name,
      split=split,
      filetype_suffix='array_record',
    )
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[note['num_examples'] for note in own],
        num_bytes=sum(note['num_bytes'] for note in own),
        filename_template=template,
      )
    )
  features = tfds.features.FeaturesDict(
    {
      'file_name': tfds.features.Text(),
      'image': tfds.features.Image(encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(names=list(class_names)),
    }
  )
  # TFDS writes where the shards are; drafts beside links to them can be put
  # in their place when they are whole.
  drafts = out.notes / 'description'
  drafts.mkdir(exist_ok=True)
  for path in out.folder.glob('*.array_record-*'):
    (drafts / path.name).unlink(missing_ok=True)
    (drafts / path.name).symlink_to(path.absolute())
  tfds.folder_dataset.write_metadata(
    data_dir=drafts,
    features=features,
    split_infos=infos,
    version=version,
    check_data=False,
    description='Images resized by alexnet_jax.data.prepare resize.',
  )
  written = [path for path in drafts.iterdir() if not path.is_symlink()]
  for path in sorted(written, key=lambda p: p.name == INFO):  # that is last
    shards.put_in_place(path, out.folder / path.name)
