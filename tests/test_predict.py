import json
import os
import pathlib
import shutil
import sys
import types

import numpy as np
import PIL.Image
import pytest

import alexnet_jax
from alexnet_jax import predict
from alexnet_jax.data import images
from alexnet_jax.evaluation import loading
from alexnet_jax.training import measure
from tests.data.pictures import encode, noise, write
from tests.evaluation.conftest import read_csv
from tests.system import commands

PREDICT = [sys.executable, '-m', 'alexnet_jax.predict']
CLASSES = ('blue', 'gray', 'green', 'red')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run that lies elsewhere now, of data that exists no longer.

  Attributes: workdir, files (of the validation split, copied, in its order),
  predictions (of the evaluation there: class, probability, class, ...).
  """
  folder = tmp_path_factory.mktemp('there')
  for number in range(36):
    split = 'val' if number % 3 == 0 else 'train'
    name = f'data/{split}/{CLASSES[number % 4]}/{number}.png'
    write(folder, {name: encode(noise(number, 30, 40), 'PNG')})
  recipe = commands.write_recipe(
    folder,
    data__source='folder',
    data__path=str(folder / 'data'),
    data__mean='image',
    num_steps=8,
    eval_every_steps=4,
    log_every_steps=4,
    report=False,
  )
  commands.train_here(recipe, folder / 'run')
  table = folder / 'examples.csv'
  alexnet_jax.open_run(folder / 'run').evaluate(per_example=str(table))
  _, *rows = read_csv(table)
  paths = [
    pathlib.Path(row[0]).relative_to(folder / 'data/val') for row in rows
  ]
  here = tmp_path_factory.mktemp('here')
  shutil.copytree(folder / 'run', here / 'run')
  shutil.copytree(folder / 'data' / 'val', here / 'images')
  shutil.rmtree(folder)
  return types.SimpleNamespace(
    workdir=here / 'run',
    images=here / 'images',
    files=[str(here / 'images' / path) for path in paths],
    predictions=[row[2:-1] for row in rows],
  )


@pytest.fixture
def ask(trained, call):
  """Calls the command; (exit code, result, errors)."""
  return lambda *more: call(predict, '--workdir', trained.workdir, *more)


def test_a_copied_run_predicts_what_evaluation_measured(trained, ask):
  """Without the data and the first folder of the run."""
  code, result, err = ask(*trained.files)
  assert code == 0, err
  assert result['unreadable'] == []
  assert [e['file'] for e in result['predictions']] == trained.files
  for entry, row in zip(
    result['predictions'], trained.predictions, strict=True
  ):
    found = entry['classes']
    assert [c['class'] for c in found] == row[::2]
    # Bit for bit.
    assert [c['probability'] for c in found] == list(map(float, row[1::2]))
    assert sum(c['probability'] for c in found) == pytest.approx(1, abs=1e-6)
  best = [entry['classes'][0] for entry in result['predictions']]
  lines = [line for line in err.splitlines() if line.startswith('/')]
  assert [line.rsplit(',')[0] for line in lines] == [
    f'{file}: {c["class"]} {c["probability"]:.4f}'
    for file, c in zip(trained.files, best, strict=True)
  ]


def test_another_checkpoint_says_something_else(trained, ask):
  results = [
    ask('--checkpoint', name, trained.files[0])[1]['predictions']
    for name in ('newest', '8', '4')
  ]
  assert results[0] == results[1] != results[2]
  code, _, err = ask('--checkpoint', '5', trained.files[0])
  assert code == 2
  assert "'5' is not in" in err


def test_unreadable_files_are_named_and_the_others_predicted(
  trained, ask, tmp_path
):
  junk, empty, pipe = (tmp_path / name for name in ('j.jpg', 'e.png', 'p.png'))
  junk.write_bytes(b'junk')
  empty.write_bytes(b'')
  os.mkfifo(pipe)  # nothing ever comes out of it
  good = trained.files[:2]
  table = tmp_path / 'table.csv'
  code, result, err = ask(
    *('--csv', table, '--top', 2, good[0], junk, good[1], empty, pipe, good[0])
  )
  assert code == 2
  assert 'error: 3 of 6 files cannot be read' in err
  files = [entry['file'] for entry in result['predictions']]
  assert files == [*good, good[0]]
  assert result['predictions'][0] == result['predictions'][2]
  assert result['unreadable'] == [
    {'file': str(junk), 'reason': 'it is no image of a known kind'},
    {'file': str(empty), 'reason': 'the file is empty'},
    {'file': str(pipe), 'reason': 'it is no plain file'},
  ]
  header, *rows = read_csv(table)
  ranked = ('class_1', 'probability_1', 'class_2', 'probability_2')
  assert header == ['file', *ranked]
  assert [row[0] for row in rows] == [
    *(good[0], str(junk), good[1], str(empty), str(pipe), good[0])
  ]
  assert rows[1][1:] == [''] * 4
  classes = result['predictions'][1]['classes']
  assert [rows[2][1], float(rows[2][4])] == [
    classes[0]['class'],
    classes[1]['probability'],
  ]


def test_if_no_file_can_be_read_all_are_named(ask, tmp_path):
  files = [str(tmp_path / name) for name in ('a.png', 'b.png')]
  for name in files:
    pathlib.Path(name).write_bytes(b'')
  table, grid = tmp_path / 'table.csv', tmp_path / 'grid.PNG'
  code, result, err = ask('--csv', table, '--grid', grid, tmp_path)
  assert code == 2
  assert result['predictions'] == []
  assert [entry['file'] for entry in result['unreadable']] == files
  assert 'error: 2 of 2 files cannot be read' in err
  assert table.read_text().splitlines() == ['file', *files]
  assert not grid.exists()


def test_an_error_of_the_network_is_no_fault_of_the_files(
  trained, ask, monkeypatch
):
  def fail(*arguments, **options):
    raise measure.UserError('something else')

  monkeypatch.setattr(measure, 'evaluate', fail)
  code, result, err = ask(trained.files[0])
  assert (code, result) == (2, None)
  assert 'something else' in err


@pytest.mark.parametrize(
  ('arguments', 'complaint'),
  [
    (('--top', '0', '.'), '--top is 0'),
    (('--grid', 'x.jpg', '.'), "'x.jpg'; it must end in .png"),
    (('--grid', 'no/x.png', '.'), 'there is no folder no'),
    (('--csv', 'no/x.csv', '.'), 'there is no folder no'),
    (('--csv', 'tests', '.'), 'tests is a folder'),
    (('tests', 'no.png'), "no file or folder 'no.png'"),
    (('tests',), 'no image in'),
  ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(
  ask, monkeypatch, arguments, complaint
):
  monkeypatch.chdir(commands.ROOT)
  monkeypatch.setattr(loading, 'load_network', None)
  code, result, err = ask(*arguments)
  assert (code, result) == (2, None)
  assert complaint in err


def test_the_grid_shows_what_the_network_sees(trained, ask, tmp_path):
  empty = tmp_path / 'empty.png'
  empty.write_bytes(b'')
  code, _, _ = ask(
    *('--grid', tmp_path / 'g.png', trained.files[3], empty, trained.files[5])
  )
  assert code == 2
  grid = np.asarray(PIL.Image.open(tmp_path / 'g.png').convert('RGB'))
  # Two columns of images of 24 pixels, five times enlarged.
  assert grid.shape[1] == 2 * (120 + 4)
  for column, index in enumerate((3, 5)):
    left = 2 + column * 124
    with PIL.Image.open(trained.files[index]) as image:
      square = images.center_square(np.asarray(image), 28)
    seen = images.center_crop(square, 24)
    np.testing.assert_array_equal(
      grid[2:122, left : left + 120], seen.repeat(5, 0).repeat(5, 1)
    )
  assert (grid[126:, :120] < 100).any()  # its label


def test_a_large_grid_is_cut_short(trained, ask, tmp_path, monkeypatch):
  monkeypatch.setattr(predict, 'MOST_IN_GRID', 5)
  code, _, err = ask('--grid', tmp_path / 'g.png', trained.images)
  assert code == 0
  assert 'g.png has the first 5 of 12 images' in err
  with PIL.Image.open(tmp_path / 'g.png') as grid:
    assert grid.size[0] == 3 * (120 + 4)


@pytest.mark.slow
def test_names_that_are_no_text(trained, tmp_path):
  names = [b'caf\xe9.png', b'line\nbreak.png', '日本.png'.encode()]
  for name in names:
    shutil.copy(trained.files[0], os.path.join(os.fsencode(tmp_path), name))
  (tmp_path / 'z\udcff.png').write_bytes(b'')
  table = tmp_path / 'table.csv'
  code, out, err = commands.run(
    *(*PREDICT, '--workdir', trained.workdir, '--json', tmp_path),
    *('--csv', table, '--grid', tmp_path / 'grid.png', '--top', 1),
  )
  assert code == 2, err
  assert 'Traceback' not in err
  result = json.loads(out)
  found = [os.fsencode(e['file']) for e in result['predictions']]
  assert sorted(os.path.basename(f) for f in found) == sorted(names)
  assert [e['reason'] for e in result['unreadable']] == ['the file is empty']
  assert all(name in table.read_bytes() for name in names)
