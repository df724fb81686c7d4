"""The command `prepare tfds`: builds a set of TFDS as array_record.

TFDS needs TensorFlow for it, which is imported in `_import_tensorflow` and, but
for a peer in the benchmark, nowhere else in the package.
"""

from collections.abc import Iterable
import contextlib
import os
import pathlib
import re
import shlex
import sys
import tarfile

from alexnet_jax import files
from alexnet_jax.data import imagenet, tar_shards, tfds_records
from alexnet_jax.errors import how_to_install, UserError

_CATALOG = 'https://www.tensorflow.org/datasets/catalog/overview'


def prepare_tfds(name: str, manual_dir: str = '', data_dir: str = '') -> dict:
  """Builds an image classification set of TFDS as array_record.

  A set that is there already is left as it is.

  Args:
    name: as TFDS calls it, `NAME` or `NAME/CONFIG`.
    manual_dir: folder of the files that TFDS cannot download itself; by default
      where TFDS looks, downloads/manual in data_dir.
    data_dir: where TFDS keeps its sets; by default TFDS_DATA_DIR or
      ~/tensorflow_datasets.

  Returns:
    {name, data_dir, folder, splits (examples of each), classes (how many)}.

  Raises UserError if there is no such set, it is no image classification, its
  files or TensorFlow are missing, or it was built in another format.
  """
  root = tfds_records.data_root(data_dir)
  if not re.fullmatch(r'[a-z0-9_]+(/[\w.\-]+)?', name):
    raise UserError(
      f'--name is {name!r}; it must be NAME or NAME/CONFIG as in {_CATALOG}'
    )
  # TFDS itself would run code that a set's description names.
  found = tfds_records.find_sets(root / name)
  folder = next((f for f in found if f.parent == root / name), None)
  already = 'already ' if folder else ''
  try:
    folder = folder or _build(name, root, manual_dir)
  except ImportError as error:
    raise UserError(
      'building a TFDS set needs TensorFlow, reading it does not:'
      f' {how_to_install("tfds")} ({error})'
    ) from error
  described = tfds_records.read_description(folder)
  splits = described.num_examples
  for split in filter(splits.get, splits):  # a finished set may have lost files
    tfds_records.tfds_source(name, split, str(root))
  keys = {'data.path': root}
  if name != 'imagenet2012':
    keys |= {'data.tfds_name': name, 'model.num_classes': 0}  # 0: the data's
  keys |= {f'data.{key}': value for key, value in split_keys(splits).items()}
  print(f'{name} is {already}prepared in {described.folder}', file=sys.stderr)
  print(splits, file=sys.stderr)
  print_command('imagenet', keys)
  return {
    'name': name,
    'data_dir': str(root),
    'folder': str(described.folder),
    'splits': splits,
    'classes': len(described.class_names),
  }


def _build(name, root, manual_dir):
  manual = pathlib.Path(manual_dir or root / 'downloads/manual').expanduser()
  builder = _make_builder(name, root)
  folder = pathlib.Path(builder.data_dir)
  if (folder / tfds_records.INFO).exists():
    return folder
  if folder.exists():
    raise UserError(
      f'{folder} holds no finished data set; move it, or change --data_dir'
    )
  instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  if name == 'imagenet2012':
    _check_tars(manual, folder.parent)
  elif instructions and not (manual.is_dir() and any(manual.iterdir())):
    raise UserError(
      f'{name} must be downloaded by hand, and {manual} does not exist or is'
      f' empty; fill it or give another with --manual_dir DIR:\n{instructions}'
    )
  elif manual_dir and not instructions:
    raise UserError(f'TFDS downloads {name} itself: leave --manual_dir out')
  tensorflow = _import_tensorflow()
  folder.parent.mkdir(parents=True, exist_ok=True)
  _run_builder(tensorflow, builder, manual)
  return folder


def _make_builder(name, root):
  """Returns TFDS's builder of the set; most are made without TensorFlow."""
  import tensorflow_datasets as tfds  # slow to import, and only needed here

  own_name, _, config = name.partition('/')
  try:
    builder = tfds.builder_cls(own_name)(
      config=config or None, data_dir=str(root)
    )
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f'TFDS has no data set {name!r}; {_CATALOG} lists them'
    ) from error
  except ValueError as error:  # a config that the set does not have
    raise UserError(str(error)) from error
  features = dict(builder.info.features.items())
  kinds = {'image': tfds.features.Image, 'label': tfds.features.ClassLabel}
  if any(not isinstance(features.get(key), kinds[key]) for key in kinds):
    raise UserError(
      f'{builder.name} has {sorted(features)}, not an image and a class label'
    )
  return builder


def _check_tars(manual, folder):
  """Finds in seconds what a build would stumble over after hours."""
  tars = manual / imagenet.TRAIN_TAR, manual / imagenet.VALIDATION_TAR
  if missing := [str(path) for path in tars if not path.is_file()]:
    raise UserError(
      f'there is no {" and no ".join(missing)}: download it from'
      ' https://image-net.org/download-images, leave it packed, and give its'
      ' folder with --manual_dir DIR'
    )
  for path in tars:
    with path.open('rb') as file:
      tar_shards.members(path, file)
  # TFDS shuffles through files that shrink as the records grow.
  files.check_room(folder, sum(path.stat().st_size for path in tars))


def _run_builder(tensorflow, builder, manual):
  import tensorflow_datasets as tfds

  try:
    with contextlib.redirect_stdout(sys.stderr):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual),
        file_format='array_record',  # TFDS's own tfrecord has no random access
      )
  except (
    OSError,
    tarfile.TarError,
    tensorflow.errors.OpError,
    KeyError,  # of a class that the set does not have
    RuntimeError,  # what ArrayRecord makes of a full disk
  ) as error:
    if isinstance(error, RuntimeError) and not files.no_room(error):
      raise
    raise UserError(
      f'cannot build {builder.name} in {builder.data_dir}: {error}\nFull disk,'
      ' damaged archive or no network; nothing was kept: start once more'
    ) from error


def _import_tensorflow():
  # Both keep it from announcing itself on standard error.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  import importlib_resources  # noqa: F401  TFDS needs it undeclared
  import tensorflow

  # Building is work for the CPU; TensorFlow would take a GPU's whole memory.
  tensorflow.config.set_visible_devices([], 'GPU')
  return tensorflow


def print_command(recipe: str, keys: dict) -> None:
  """Prints the command that trains with a recipe and some keys."""
  overrides = (shlex.quote(f'--config.{k}={v}') for k, v in keys.items())
  print(
    f'to train on it:\n  python -m alexnet_jax.main --config {recipe}'
    f' {" ".join(overrides)}',
    file=sys.stderr,
  )


def split_keys(splits: Iterable[str]) -> dict[str, str]:
  """Returns what config.data needs if a set has no split `validation`."""
  if 'validation' in splits:
    return {}
  if 'test' in splits:
    return {'tfds_eval_split': 'test'}
  return {'tfds_train_split': 'train[:80%]', 'tfds_eval_split': 'train[80%:]'}
