"""Runs measured on data that they were not trained on."""

import numpy as np
import pytest

from alexnet_jax import predict
from alexnet_jax.data.prepare import __main__ as prepare
from alexnet_jax.evaluation import evaluate, report
from tests.data import pictures
from tests.evaluation.conftest import read_csv
from tests.system import commands

NAMES = ('cat', 'cow', 'dog')


def examples(seed, count, kept=(0, 1, 2)):
  """(JPEG, label) of some noisy images, `count` of each class; not all kept."""
  for number in range(3 * count):
    if number % 3 in kept:
      pixels = pictures.noise(100 * seed + number, 28, 28)
      yield pictures.encode(pixels), number % 3


KINDS = ('folder', 'tar', 'parquet')


FOLDER = pytest.mark.parametrize('trained', ['folder'], indirect=True)


def write_data(root, kind, prefix, *which):
  pictures.write_set(root, kind, prefix, examples(*which), NAMES)


@pytest.fixture(scope='module', params=KINDS)
def trained(request, tmp_path_factory, small):
  """(workdir, kind, folder): a run on 24 images, 6 of them held out."""
  if request.param == 'parquet':
    pytest.importorskip('pyarrow')
  folder = tmp_path_factory.mktemp(request.param)
  write_data(folder / 'data', request.param, 'train', 0, 8)
  recipe = commands.write_recipe(
    folder,
    **small,
    data__source=request.param,
    data__path=str(folder / 'data'),
    data__val_fraction=0.25,
    data__unreadable='skip',
    num_steps=2,
    global_batch_size=4,
  )
  commands.train_here(recipe, folder / 'run')
  return folder / 'run', request.param, folder


def test_other_images_are_measured_whole(trained, tmp_path, call):
  """Two of each class, which training would divide."""
  workdir, kind, _ = trained
  write_data(tmp_path / 'data', kind, 'test', 1, 2)
  place = ('--data_path', tmp_path / 'data')
  result, err = commands.done(call(evaluate, '--workdir', workdir, *place))
  assert result['examples'] == 6
  assert 'is not the data of the training; all 6 examples' in err
  if kind != 'folder':
    return
  _, page, _ = call(report, '--workdir', workdir, *place)
  assert page['examples'] == 6
  assert page['training_examples'] == 18
  assert page['metrics']['eval/loss'] == pytest.approx(result['eval/loss'])
  assert not any('augmentation' in file for file in page['files'])


@FOLDER
def test_the_data_of_the_training_is_divided_where_it_lies(trained, call):
  workdir, _, folder = trained
  arguments = ('--workdir', workdir)
  expected = call(evaluate, *arguments)[1]
  assert expected['examples'] == 6
  moved = (folder / 'data').rename(folder / 'moved')
  try:
    place = ('--data_path', moved)
    result, err = commands.done(call(evaluate, *arguments, *place))
    assert 'is not the data' not in err
    assert result['examples'] == 6
    assert result['eval/loss'] == expected['eval/loss']
  finally:
    moved.rename(folder / 'data')


@FOLDER
def test_a_folder_may_have_few_images_and_classes(trained, tmp_path, call):
  write_data(tmp_path / 'all', 'folder', '', 1, 1)
  arguments = ('--workdir', trained[0], '--data_path')
  result, _ = commands.done(call(evaluate, *arguments, tmp_path / 'all'))
  assert result['examples'] == 3
  (tmp_path / 'all' / 'cow').rename(tmp_path / 'cow')
  result, _ = commands.done(call(evaluate, *arguments, tmp_path / 'all'))
  assert result['examples'] == 2
  # The labels are those of training: of `dog`, not of the second folder.
  cat, dog = probabilities(call, trained[0], tmp_path / 'all').values()
  losses = -np.log([cat['cat'], dog['dog']])
  assert result['eval/loss'] == pytest.approx(losses.mean(), rel=1e-4)


@FOLDER
def test_other_data_keeps_its_own_splits(trained, tmp_path, call):
  write_data(tmp_path / 'train', 'folder', '', 1, 3)
  write_data(tmp_path / 'val', 'folder', '', 2, 1)
  for split, count in (('train', 9), ('validation', 3)):
    arguments = ('--workdir', trained[0], '--data_path', tmp_path)
    result = call(evaluate, *arguments, '--split', split)[1]
    assert result['examples'] == count


def probabilities(call, workdir, photographs):
  """{file: {class: probability}} of all classes, by `predict`."""
  entries = call(predict, '--workdir', workdir, photographs)[1]['predictions']
  return {
    entry['file']: {c['class']: c['probability'] for c in entry['classes']}
    for entry in entries
  }


@FOLDER
@pytest.mark.parametrize('kind', [*KINDS, 'raw', 'tfds:photos'])
def test_a_subset_is_measured_over_its_classes(trained, tmp_path, call, kind):
  """Cats and dogs of every kind, by a network that knows cows."""
  workdir = trained[0]
  if kind in KINDS:
    if kind == 'parquet':
      pytest.importorskip('pyarrow')
    write_data(tmp_path / 'data', kind, 'test', 1, 2, (0, 2))
  else:
    write_data(tmp_path / 'set' / 'train', 'folder', '', 2, 2)
    write_data(tmp_path / 'set' / 'val', 'folder', '', 1, 2, (0, 2))
    line = 'raw' if kind == 'raw' else 'resize --name photos'
    line += f' --source folder --size 28 --path {tmp_path}/set --out'
    assert prepare.main([*line.split(), str(tmp_path / 'data')]) == 0
  write_data(tmp_path / 'photographs', 'folder', '', 1, 2, (0, 2))
  arguments = ['--workdir', workdir, '--data_path', tmp_path / 'data']
  arguments += [] if kind == 'folder' else ['--data_source', kind]
  table = tmp_path / 'table.csv'
  arguments += ['--subset', '--per_example', table]
  result, err = commands.done(call(evaluate, *arguments))
  assert 'has 2 of the 3 classes; only those are predicted' in err
  by_file = probabilities(call, workdir, tmp_path / 'photographs')
  wanted = []
  for file, shares in by_file.items():
    label, other = ('cat', 'dog') if '/cat/' in file else ('dog', 'cat')
    share = shares[label] / (shares['cat'] + shares['dog'])
    best = sorted([(share, label), (1 - share, other)], reverse=True)
    wanted.append([-np.log(share), label, *best[0], *best[1]])
  header, *rows = read_csv(table)
  ranked = ['class_1', 'probability_1', 'class_2', 'probability_2']
  assert header == ['name', 'label', *ranked, 'loss']
  found = [
    [float(loss), label, float(p), first, float(q), second]
    for _, label, first, p, second, q, loss in rows
  ]
  if kind == 'folder':
    names = [name.replace('/data/', '/photographs/') for name, *_ in rows]
    assert names == list(by_file)
  for row, expected in zip(sorted(found), sorted(wanted), strict=True):
    assert row[1::2] == expected[1::2]
    assert row[::2] == pytest.approx(expected[::2], rel=1e-4)
  losses = [loss for loss, *_ in wanted]
  assert result['eval/loss'] == pytest.approx(np.mean(losses), rel=1e-4)
  assert (result['classes'], result['examples']) == (2, 4)
  # The mean is over the two classes, of as many images.
  right = np.mean([label == best for _, label, _, best, *_ in wanted])
  for key, value in (('top1', right), ('top5', 1), ('macro_recall', right)):
    assert result[f'eval/{key}'] == pytest.approx(value)


@FOLDER
def test_an_image_that_cannot_be_read_has_its_name_in_the_table(
  trained, tmp_path, call
):
  write_data(tmp_path / 'data', 'folder', '', 1, 1)
  broken = tmp_path / 'data' / 'cow' / '01.jpg'
  broken.write_bytes(b'')
  arguments = ('--workdir', trained[0], '--data_path', tmp_path / 'data')
  table = tmp_path / 'table.csv'
  code, result, _ = call(evaluate, *arguments, '--per_example', table)
  assert (code, result['unreadable'], result['classes']) == (0, 1, 3)
  _, *rows = read_csv(table)
  assert rows[1] == [str(broken), *[''] * 8]
  assert [row[1] for row in rows] == ['cat', '', 'dog']


@pytest.mark.parametrize('trained', ['parquet'], indirect=True)
def test_other_classes_are_refused_by_name(trained, tmp_path, call):
  arguments = ('--workdir', trained[0], '--data_path', tmp_path / 'data')
  write_data(tmp_path / 'data', 'parquet', 'test', 1, 2, (0, 2))
  hint = '`evaluate --subset` takes data with a part of the classes'
  commands.refused(call(evaluate, *arguments), hint)
  (tmp_path / 'data').rename(tmp_path / 'parquet')
  write_data(tmp_path / 'data', 'folder', '', 1, 1)
  (tmp_path / 'data' / 'cow').rename(tmp_path / 'data' / 'ox')
  for flags in ((), ('--subset',)):
    answer = call(evaluate, *arguments, '--data_source', 'folder', *flags)
    words = "'ox'", "3 classes ('cat', 'cow', 'dog')"
    err = commands.refused(answer, *words)
  assert "1 classes ('ox') that the network lacks" in err
