"""Runs measured on data that they were not trained on."""

import io
import tarfile

import numpy as np
import PIL.Image
import pytest

from alexnet_jax import predict
from alexnet_jax.evaluation import evaluate
from alexnet_jax.evaluation import report
from tests.system import commands

NAMES = ('cat', 'cow', 'dog')


def examples(seed, count):
  """(PNG, label) of some noisy images, `count` of each class."""
  rng = np.random.default_rng(seed)
  for number in range(3 * count):
    pixels = rng.integers(0, 256, (30, 30, 3), np.uint8)
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, 'PNG')
    yield content.getvalue(), number % 3


def write_folder(root, prefix, seed, count):
  for number, (content, label) in enumerate(examples(seed, count)):
    path = root / NAMES[label] / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_tar(root, prefix, seed, count):
  root.mkdir(parents=True)
  (root / 'classes.txt').write_text('\n'.join(NAMES))
  with tarfile.open(root / f'{prefix}-0.tar', 'w') as tar:
    for number, (content, label) in enumerate(examples(seed, count)):
      for suffix, data in (('png', content), ('cls', str(label).encode())):
        info = tarfile.TarInfo(f'{number}.{suffix}')
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def write_parquet(root, prefix, seed, count):
  import pyarrow as pa
  import pyarrow.parquet as pq

  root.mkdir(parents=True)
  contents, labels = zip(*examples(seed, count), strict=True)
  table = pa.table({'image': contents, 'label': [NAMES[i] for i in labels]})
  pq.write_table(table, root / f'{prefix}-0.parquet')


WRITERS = {'folder': write_folder, 'tar': write_tar, 'parquet': write_parquet}


@pytest.fixture(scope='module', params=WRITERS)
def trained(request, tmp_path_factory, small):
  """(workdir, kind, folder): a run on 24 images, 6 of them held out."""
  if request.param == 'parquet':
    pytest.importorskip('pyarrow')
  folder = tmp_path_factory.mktemp(request.param)
  WRITERS[request.param](folder / 'data', 'train', 0, 8)
  recipe = commands.write_recipe(
    folder,
    **small,
    data__source=request.param,
    data__path=str(folder / 'data'),
    data__val_fraction=0.25,
    num_steps=2,
    global_batch_size=4,
  )
  commands.train_here(recipe, folder / 'run')
  return folder / 'run', request.param, folder


@pytest.mark.parametrize('prefix', ['test', 'images'])
def test_other_images_are_measured_whole(trained, tmp_path, call, prefix):
  """Two of each class, which training would divide."""
  workdir, kind, _ = trained
  WRITERS[kind](tmp_path / 'data', prefix, 1, 2)
  place = ('--data_path', tmp_path / 'data')
  code, result, err = call(evaluate, '--workdir', workdir, *place)
  assert code == 0, err
  assert result['examples'] == 6
  assert 'is not the data of the training; all 6 examples' in err
  code, page, _ = call(report, '--workdir', workdir, *place)
  assert page['examples'] == 6
  assert page['training_examples'] == 18
  assert page['metrics']['eval/loss'] == pytest.approx(result['eval/loss'])
  assert not any('augmentation' in file for file in page['files'])


def test_the_data_of_the_training_is_divided_where_it_lies(trained, call):
  workdir, _, folder = trained
  arguments = ('--workdir', workdir)
  expected = call(evaluate, *arguments)[1]
  assert expected['examples'] == 6
  moved = (folder / 'data').rename(folder / 'moved')
  try:
    place = ('--data_path', moved)
    code, result, err = call(evaluate, *arguments, *place)
    assert code == 0, err
    assert 'is not the data' not in err
    assert result['examples'] == 6
    assert result['eval/loss'] == expected['eval/loss']
  finally:
    moved.rename(folder / 'data')


@pytest.mark.parametrize('trained', ['folder'], indirect=True)
@pytest.mark.parametrize('split', ['validation', 'train'])
def test_a_folder_may_have_few_images_and_classes(
  trained, tmp_path, call, split
):
  write_folder(tmp_path / 'all', '', 1, 1)
  arguments = ('--workdir', trained[0], '--split', split, '--data_path')
  code, result, err = call(evaluate, *arguments, tmp_path / 'all')
  assert code == 0, err
  assert result['examples'] == 3
  (tmp_path / 'all' / 'cow').rename(tmp_path / 'cow')
  code, result, err = call(evaluate, *arguments, tmp_path / 'all')
  assert code == 0, err
  assert result['examples'] == 2
  # The labels are those of training: of `dog`, not of the second folder.
  answers = call(predict, '--workdir', trained[0], tmp_path / 'all')
  shares = [
    {c['class']: c['probability'] for c in entry['classes']}
    for entry in answers[1]['predictions']
  ]
  losses = -np.log([shares[0]['cat'], shares[1]['dog']])
  assert result['eval/loss'] == pytest.approx(losses.mean(), rel=1e-4)


@pytest.mark.parametrize('trained', ['folder'], indirect=True)
def test_other_data_keeps_its_own_splits(trained, tmp_path, call):
  write_folder(tmp_path / 'train', '', 1, 3)
  write_folder(tmp_path / 'val', '', 2, 1)
  for split, count in (('train', 9), ('validation', 3)):
    arguments = ('--workdir', trained[0], '--data_path', tmp_path)
    result = call(evaluate, *arguments, '--split', split)[1]
    assert result['examples'] == count
