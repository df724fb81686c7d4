"""The report of a run on photographs whose classes have wild names."""

import base64
import json
import pathlib
import re
import shutil

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.evaluation import loading, report, sections
from alexnet_jax.training import build, metrics, preprocess, writers
from tests import browser
from tests.evaluation.conftest import read_csv
from tests.system import commands

CLASSES = sorted(
  [
    '"><svg onload=document.title=1>',
    '<script>document.title=1',
    '[bold]Müller ß[] :cat: $x_1$',
    '日本,\n"=1+1\x1b[2J',
  ]
)
KEYS = [
  *('precision', 'recall', 'f1', 'support'),
  *('true_positives', 'false_positives', 'false_negatives', 'true_negatives'),
]
PICTURES = {
  *('augmentation', 'confusion', 'curves', 'filters', 'learning_rate'),
  *('mistakes', 'predictions', 'speed', 'step_losses'),
}


def photographs(folder):
  """40 images of four classes, a fifth of which look like the next class."""
  rng = np.random.default_rng(0)
  for number, name in enumerate(CLASSES):
    (folder / name).mkdir(parents=True)
    for i in range(10):
      image = rng.integers(0, 100, (34, 40, 3), dtype=np.uint8)
      band = (number + (i < 2)) % 4 * 8
      image[band : band + 10] += 150
      PIL.Image.fromarray(image).save(folder / name / f'{i} of $1$.png')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(workdir, data): a trained run, and where its data lies now."""
  folder = tmp_path_factory.mktemp('report')
  photographs(folder / 'before')
  recipe = commands.write_recipe(
    folder,
    data__source='folder',
    data__path=str(folder / 'before'),
    data__val_fraction=0.5,
    num_steps=32,
    eval_every_steps=16,
  )
  commands.train_here(recipe, folder / 'run')
  (folder / 'before').rename(folder / 'data')
  return folder / 'run', folder / 'data'


@pytest.fixture(scope='module')
def written(trained):
  """The result of the report, the folder's path and the number of ticks."""
  workdir, data = trained
  ticks = []
  result = report.write(
    str(workdir), data_path=str(data), tick=lambda: ticks.append(1)
  )
  return result, workdir / report.REPORT_FOLDER, len(ticks)


@pytest.fixture
def copied(trained, tmp_path):
  """A copy of the run without its report."""
  ignored = shutil.ignore_patterns('report')
  return shutil.copytree(trained[0], tmp_path / 'run', ignore=ignored)


def test_the_page_shows_what_was_measured(written):
  result, _, _ = written
  dom = browser.open_page(pathlib.Path(result['page']))
  table = dom.tables['Every class'].rows
  assert [row[0].text for row in table[1:]] == CLASSES
  for row, wanted in zip(table[1:], result['classes'], strict=True):
    assert [float(cell.value) for cell in row[1:]] == [wanted[k] for k in KEYS]
  for row in dom.tables['Averages'].rows[1:]:
    assert [float(cell.value) for cell in row[1:]] == [
      result['metrics'][f'eval/{row[0].text}_{name}']
      for name in metrics.MEASURES
    ]
  # That nothing was loaded, and no script failed, `open_page` sees to.
  assert dom.title == 'Report of run'
  pictures = [attrs for tag, attrs in dom.tags if tag == 'img']
  assert len(pictures) == len(PICTURES)
  assert all(len(picture['alt']) > 20 for picture in pictures)
  shown = dict(zip(dom.texts, dom.texts[1:], strict=False))
  wanted = {
    'top-1': f'{result["metrics"]["eval/top1"]:.4f}',
    'validation images': '20',
    'training images': '20',
    'steps': '32 of 32',
    'epochs': '12.80',
    'parameters': f'{result["parameters"]:,}',
  }
  assert {name: shown[name] for name in wanted} == wanted


def test_the_files_beside_the_page(written):
  result, folder, ticks = written
  assert ticks == 3 + len(PICTURES)  # 3 batches
  wanted = [f'{name}.png' for name in PICTURES]
  wanted += ['classes.csv', 'confusion.csv']
  assert sorted(wanted) == sorted(pathlib.Path(f).name for f in result['files'])
  assert sorted(p.name for p in folder.iterdir() if p.is_file()) == sorted(
    [*wanted, 'index.html']
  )
  text = (folder / 'index.html').read_text()
  inlined = re.findall(r'data:image/png;base64,([^"]*)"', text)
  assert {base64.b64decode(code) for code in inlined} == {
    path.read_bytes() for path in folder.glob('*.png')
  }
  assert json.loads(json.dumps(result, allow_nan=False)).keys() == result.keys()
  assert result['config']['data.val_fraction'] == 0.5
  header, *table = read_csv(folder / 'confusion.csv')
  assert header == ['true', *CLASSES]
  assert [row[0] for row in table] == CLASSES
  confusion = np.array([row[1:] for row in table], int)
  assert confusion.sum(1).tolist() == [5] * 4
  assert result['metrics']['eval/top1'] == np.trace(confusion) / 20
  for row, counts in zip(result['classes'], confusion, strict=True):
    assert row['recall'] == counts[CLASSES.index(row['class'])] / 5
  header, *rows = read_csv(folder / 'classes.csv')
  assert header == ['class', *KEYS]
  for row, wanted in zip(rows, result['classes'], strict=True):
    assert row == [str(value) for value in wanted.values()]


def test_the_worst_mistakes(trained, written):
  mistakes, top1 = written[0]['mistakes'], written[0]['metrics']['eval/top1']
  assert 0 < len(mistakes) == 20 - round(20 * top1) < 20
  losses = [mistake['loss'] for mistake in mistakes]
  assert losses == sorted(losses, reverse=True)
  for mistake in mistakes:
    path = pathlib.Path(mistake['file'])
    assert path.is_file()
    assert path.parent == trained[1] / mistake['true']
    assert mistake['predicted'] != mistake['true']
    assert 1 / 4 < mistake['probability'] < 1
    assert mistake['loss'] > -np.log(1 - mistake['probability'])


def test_augmented_examples_are_windows_of_squares(trained):
  workdir, data = trained
  run = loading.load_network(str(workdir), data_path=str(data))
  loader = loading.make_eval_loader(run, 'train')
  subject = sections.MeasuredRun(run, loader, None, measured=None)
  full = next(build.make_train_iter(run.config, loader, 1, run.mesh))
  rows = sections.augmented(subject, 6)
  wanted = np.uint8(np.round(preprocess.augment(full)))[:6]
  np.testing.assert_array_equal([row[1] for row in rows], wanted)
  assert {change for *_, change in rows} == {'', 'mirrored'}
  for square, image, name, change in rows:
    assert name in CLASSES
    assert square.shape == (28, 28, 3)
    image = image[:, ::-1] if change else image
    windows = np.lib.stride_tricks.sliding_window_view(square, (24, 24, 3))
    assert (windows == image).all((-3, -2, -1)).sum() == 1
  assert len(sections.augmented(subject, 100)) == len(full['label'])


def test_the_terminal_lists_every_class_of_few(written, capsys):
  """By its whole name, without markup; a broken one is on two lines."""
  report.show(written[0])
  rows = [
    [cell.strip() for cell in line.split('│')[1:-1]]
    for line in capsys.readouterr().err.splitlines()
    if line.count('│') == 10
  ]
  names = [row[0] for row in rows]
  assert names == [*CLASSES[:3], '日本,', '"=1+1�[2J']  # nothing steers it
  for row, wanted in zip(rows[:4], written[0]['classes'], strict=True):
    assert row[1:4] == [f'{wanted[key]:.4f}' for key in KEYS[:3]]
    assert row[4:] == [str(wanted[key]) for key in KEYS[3:]]


def test_the_terminal_lists_the_best_and_worst_of_many(written, capsys):
  seen = 70
  confusion = np.diag(np.arange(100, 0, -1))
  confusion[:, 0] += np.arange(100)
  confusion[seen:] = 0  # they have no examples
  rows = sections.class_rows(confusion, [f'class {i:02}' for i in range(100)])
  report.show({**written[0], 'classes': rows})
  err = capsys.readouterr().err
  wanted = sorted(rows[:seen], key=lambda row: -row['f1'])
  wanted = [row['class'] for row in wanted]
  shown = re.findall(r'│ (class \d\d)', err)
  assert shown == wanted[:10] + wanted[-10:]
  assert 'The 10 best and the 10 worst' in err


def test_a_report_that_is_stopped_leaves_no_page(trained, copied):
  ticks = iter(range(5))
  with pytest.raises(StopIteration):
    report.write(str(copied), 'newest', str(trained[1]), lambda: next(ticks))
  assert not (copied / report.REPORT_FOLDER / report.PAGE).exists()


def test_of_many_classes_the_pairs_are_written(trained, copied, monkeypatch):
  monkeypatch.setattr(sections, '_MOST_IN_MATRIX', 3)
  result = report.write(str(copied), '16', str(trained[1]))
  assert result['step'] == 16
  header, *pairs = read_csv(copied / 'report' / 'confusion.csv')
  assert header == ['true', 'predicted', 'examples']
  assert sum(int(count) for *_, count in pairs) == result['examples'] == 20
  right = sum(int(count) for true, found, count in pairs if true == found)
  assert result['metrics']['eval/top1'] == right / 20


def test_a_report_says_that_the_run_is_not_done(trained, copied, call):
  """And what it lacks, or has too much of, after a power cut."""
  shutil.rmtree(copied / 'checkpoints' / '32')
  (copied / writers.METRICS_FILE).unlink()
  places = '--workdir', copied, '--data_path', trained[1]
  _, err = commands.done(call(report, *places))
  text = (copied / 'report' / 'index.html').read_text()
  for note in (
    'The run is not done: it is at step 16 of 32.',
    'The run has no history',
  ):
    assert note in err
    assert note in text
  assert '16 of 32' in text.replace('at step 16 of 32', '')
  names = {path.stem for path in (copied / 'report').glob('*.png')}
  assert names == PICTURES - {'curves', 'learning_rate', 'speed', 'step_losses'}


def test_a_report_follows_no_links(trained, copied, tmp_path, call):
  report_folder, other = copied / 'report', tmp_path / 'other'
  other.mkdir()
  report_folder.symlink_to(other)
  answer = call(report, '--workdir', copied, '--data_path', trained[1])
  commands.refused(answer, f'{report_folder} is a link')
  assert not list(other.iterdir())


@pytest.mark.parametrize('config', ['{"seed": 3}', '{"se'])
def test_a_run_without_a_checkpoint_has_its_curves(tmp_path, config):
  """And without evaluation, as one that was killed early."""
  writer = writers.MetricWriter(tmp_path, step=0, evaluated_step=0)
  values = {'train/loss': 2.0, 'train/top1': 0.5, 'learning_rate': 0.1}
  for step in (10, 20):
    writer.scalars(step, values)
    writer.step_losses(step, [2.0] * 10)
  writer.close()
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').write_text(config)
  result = report.write(str(tmp_path))
  expected = 3 if config == '{"seed": 3}' else None
  assert result['config'].get('seed') == expected
  assert [pathlib.Path(file).name for file in result['files']] == [
    *('step_losses.png', 'curves.png', 'learning_rate.png')
  ]
  assert 'metrics' not in result
  text = (tmp_path / 'report' / 'index.html').read_text()
  assert 'The run has no checkpoint yet' in text
  report.show(result)


def test_a_folder_that_is_no_run_is_refused(tmp_path, call):
  commands.refused(call(report, '--workdir', tmp_path), 'has no history')
  assert not list(tmp_path.iterdir())
