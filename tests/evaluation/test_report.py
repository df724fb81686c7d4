"""The report of a run on photographs whose classes have wild names."""

import base64
import csv
import json
import pathlib
import re
import shutil
import types

import numpy as np
import PIL.Image
import pytest

from alexnet_jax import validation
from alexnet_jax.cli import Console
from alexnet_jax.evaluation import compare
from alexnet_jax.evaluation import report
from alexnet_jax.evaluation import sections
from alexnet_jax.training import build
from alexnet_jax.training import guards
from alexnet_jax.training import loop
from alexnet_jax.training import measure
from alexnet_jax.training import metrics
from alexnet_jax.training import preprocess
from alexnet_jax.training import writers
from tests import browser
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
    log_every_steps=4,
  )
  loop.train_and_evaluate(
    validation.load_config([f'--config={recipe}']),
    str(folder / 'run'),
    guards.StopSignal(),
    Console(),
  )
  (folder / 'before').rename(folder / 'data')
  return folder / 'run', folder / 'data'


@pytest.fixture(scope='module')
def written(trained):
  """The result of the report, the folder's path and the calls of progress."""
  workdir, data = trained
  calls = []
  result = report.write(
    str(workdir), data_path=str(data), progress=calls.append
  )
  return result, workdir / report.REPORT_FOLDER, calls


@pytest.fixture(scope='module')
def dom(written):
  return browser.open_page(pathlib.Path(written[0]['page']))


def read_csv(path):
  with path.open(newline='', encoding='utf-8') as file:
    return list(csv.reader(file))


def test_the_page_shows_what_was_measured(written, dom):
  result, _, _ = written
  table = dom.tables['Every class'].rows
  assert [row[0].text for row in table[1:]] == CLASSES
  for row, wanted in zip(table[1:], result['classes'], strict=True):
    assert [float(cell.value) for cell in row[1:]] == [wanted[k] for k in KEYS]
  assert [cell.text for cell in dom.tables['Averages'].rows[0][1:]] == [
    *('precision', 'recall', 'F1')
  ]
  for row in dom.tables['Averages'].rows[1:]:
    assert [float(cell.value) for cell in row[1:]] == [
      result['metrics'][f'eval/{row[0].text}_{name}']
      for name in metrics.MEASURES
    ]
  shown = dict(zip(dom.texts, dom.texts[1:], strict=False))
  # That nothing was loaded, and no script failed, `open_page` sees to.
  assert dom.title == 'Report of run'
  pictures = [attrs for tag, attrs in dom.tags if tag == 'img']
  assert len(pictures) == len(PICTURES)
  assert all(len(picture['alt']) > 20 for picture in pictures)
  assert shown['top-1'] == f'{result["metrics"]["eval/top1"]:.4f}'
  assert shown['validation images'] == '20'
  assert shown['training images'] == '20'
  assert shown['steps'] == '32 of 32'
  assert shown['epochs'] == '12.80'
  assert shown['parameters'] == f'{result["parameters"]:,}'


def test_the_tables_are_those_of_the_confusion_matrix(written):
  result, folder, _ = written
  table = read_csv(folder / 'confusion.csv')
  assert table[0] == ['true', *CLASSES]
  assert [row[0] for row in table[1:]] == CLASSES
  confusion = np.array([row[1:] for row in table[1:]], int)
  assert confusion.sum(1).tolist() == [5] * 4
  assert result['metrics']['eval/top1'] == np.trace(confusion) / 20
  for row, counts in zip(result['classes'], confusion, strict=True):
    assert row['recall'] == counts[CLASSES.index(row['class'])] / 5
  rows = read_csv(folder / 'classes.csv')
  assert rows[0] == ['class', *KEYS]
  for row, wanted in zip(rows[1:], result['classes'], strict=True):
    assert row == [str(value) for value in wanted.values()]


def test_the_files_beside_the_page(written):
  result, folder, calls = written
  assert calls == list(range(1, 3 + len(PICTURES) + 1))  # 3 batches
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


def test_the_result_is_json(written):
  result, _, _ = written
  assert json.loads(json.dumps(result, allow_nan=False)).keys() == result.keys()
  assert result['config']['data.val_fraction'] == 0.5
  layers = {row['layer']: row for row in result['layers']}
  # 24 x 24 positions of 8 filters of 3 x 3 x 3, two per multiply-add.
  assert layers['conv1']['forward_flops'] == 2 * 24 * 24 * 8 * 27
  assert layers['conv1']['parameters'] == 8 * 27 + 8
  assert (
    sum(row['parameters'] for row in layers.values()) == (result['parameters'])
  )


def test_the_worst_mistakes(trained, written):
  _, data = trained
  result, _, _ = written
  mistakes = result['mistakes']
  wrong = 20 - round(20 * result['metrics']['eval/top1'])
  assert 0 < len(mistakes) == wrong < 20
  losses = [mistake['loss'] for mistake in mistakes]
  assert losses == sorted(losses, reverse=True)
  for mistake in mistakes:
    path = pathlib.Path(mistake['file'])
    assert path.is_file()
    assert path.parent == data / mistake['true']
    assert mistake['predicted'] != mistake['true']
    assert 1 / 4 < mistake['probability'] < 1
    assert mistake['loss'] > -np.log(1 - mistake['probability'])


@pytest.fixture(scope='module')
def subject(trained):
  """The run with its data, not measured."""
  workdir, data = trained
  run = measure.load_network(str(workdir), data_path=str(data))
  loaders = [measure.make_eval_loader(run, s) for s in ('train', 'validation')]
  return sections.MeasuredRun(run, *loaders, measured=None)


def test_augmented_examples_are_windows_of_squares(subject):
  run, loader = subject.run, subject.training
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


def test_images_are_chosen_evenly():
  counts = np.ones(1_000, bool)
  counts[:500] = False
  predictions = types.SimpleNamespace(counts=counts)
  measured = types.SimpleNamespace(predictions=predictions)
  split = sections.MeasuredRun(None, None, None, measured)
  chosen = split.evenly_chosen(196)
  assert len(set(chosen)) == 196
  assert (chosen[0], chosen[-1]) == (500, 999)
  assert set(np.diff(chosen)) == {2, 3}
  assert len(split.evenly_chosen(600)) == 500


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
  confusion = np.diag(np.arange(100, 0, -1))
  confusion[:, 0] += np.arange(100)
  confusion[70:] = 0  # they have no examples
  rows = sections.class_rows(confusion, [f'class {i:02}' for i in range(100)])
  report.show({**written[0], 'classes': rows})
  err = capsys.readouterr().err
  wanted = sorted(rows[:70], key=lambda row: -row['f1'])
  wanted = [row['class'] for row in wanted]
  assert re.findall(r'│ (class \d\d)', err) == wanted[:10] + wanted[-10:]
  assert 'The 10 best and the 10 worst' in err


def test_the_command(trained, capsys):
  workdir, data = trained
  arguments = ['--workdir', str(workdir), '--json', '--checkpoint', '16']
  page = workdir / report.REPORT_FOLDER / report.PAGE
  page.unlink(missing_ok=True)
  assert report.main(arguments) == 2
  _, err = capsys.readouterr()
  assert '--data_path' in err
  assert not page.exists()
  assert report.main([*arguments, '--data_path', str(data)]) == 0
  out, _ = capsys.readouterr()
  result = json.loads(out.splitlines()[-1])
  assert result['step'] == 16
  assert page.is_file()
  assert result['page'] == str(page)


def test_a_report_that_is_stopped_leaves_no_page(trained, tmp_path):
  workdir, data = trained
  shutil.copytree(workdir, tmp_path / 'run')
  page = tmp_path / 'run' / report.REPORT_FOLDER / report.PAGE
  page.unlink(missing_ok=True)

  def stop(done):
    if done == 6:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    report.write(str(tmp_path / 'run'), 'newest', str(data), stop)
  assert not page.exists()


def test_the_files_of_a_thousand_classes_stay_small(tmp_path, small):
  recipe = commands.write_recipe(
    tmp_path,
    **{**small, 'data__synthetic_classes': 1_001},
    num_steps=1,
  )
  config = validation.load_config([f'--config={recipe}'])
  config.data.synthetic_examples = 1_001
  workdir = str(tmp_path / 'run')
  loop.train_and_evaluate(config, workdir, guards.StopSignal(), Console())
  result = report.write(workdir)
  folder = tmp_path / 'run' / 'report'
  header, *pairs = read_csv(folder / 'confusion.csv')
  assert header == ['true', 'predicted', 'examples']
  assert sum(int(count) for *_, count in pairs) == result['examples'] == 1_001
  right = sum(int(count) for true, found, count in pairs if true == found)
  assert result['metrics']['eval/top1'] == right / 1_001
  assert (folder / 'confusion.csv').stat().st_size < 100_000
  assert (folder / 'index.html').stat().st_size < 2_000_000


def test_a_report_says_that_the_run_is_not_done(trained, tmp_path, capsys):
  workdir, data = trained
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '32')
  place = ['--data_path', str(data)]
  assert report.main(['--workdir', str(tmp_path / 'run'), *place]) == 0
  note = 'The run is not done: it is at step 16 of 32.'
  assert note in capsys.readouterr().err
  text = (tmp_path / 'run' / 'report' / 'index.html').read_text()
  assert note in text
  assert '16 of 32' in text.replace(note, '')


def test_a_report_follows_no_links(trained, tmp_path, capsys):
  workdir, data = trained
  run, report_folder = tmp_path / 'run', tmp_path / 'run' / 'report'
  shutil.copytree(workdir, run, ignore=shutil.ignore_patterns('report'))
  other = tmp_path / 'other'
  other.mkdir()
  report_folder.symlink_to(other)
  arguments = ['--workdir', str(run), '--data_path', str(data)]
  assert report.main(arguments) == 2
  assert f'{report_folder} is a link' in capsys.readouterr().err
  report_folder.unlink()
  report_folder.mkdir()
  (other / 'mine.html').write_text('mine')
  (report_folder / 'index.html').symlink_to(other / 'mine.html')
  assert report.main(arguments) == 2
  assert 'index.html is a link' in capsys.readouterr().err
  assert (other / 'mine.html').read_text() == 'mine'


def history(folder):
  """A history without evaluation, as of a run that was killed early."""
  writer = writers.MetricWriter(folder, step=0, evaluated_step=0)
  for step in (10, 20):
    writer.scalars(
      step, {'train/loss': 2.0, 'train/top1': 0.5, 'learning_rate': 0.1}
    )
    writer.step_losses(step, [2.0] * 10)
  writer.close()


@pytest.mark.parametrize('config', ['{"seed": 3}', '{"se', None])
def test_a_run_without_a_checkpoint_has_its_curves(tmp_path, config):
  history(tmp_path)
  (tmp_path / 'checkpoints').mkdir()
  if config:
    (tmp_path / 'config.json').write_text(config)
  result = report.write(str(tmp_path))
  assert result['config'].get('seed') == (
    3 if config == '{"seed": 3}' else None
  )
  assert [pathlib.Path(file).name for file in result['files']] == [
    *('step_losses.png', 'curves.png', 'learning_rate.png')
  ]
  assert 'metrics' not in result
  text = (tmp_path / 'report' / 'index.html').read_text()
  assert 'The run has no checkpoint yet' in text
  report.show(result)


def test_lines_that_are_no_rows_are_left_out(trained, tmp_path, caplog):
  """Of the history, as a power cut or another program leaves it."""
  workdir, data = trained
  shutil.copytree(workdir, tmp_path / 'run')
  history = tmp_path / 'run' / writers.METRICS_FILE
  lines = history.read_bytes().splitlines(keepends=True)
  odd = [b'3\n', b'{"note": 1}\n', b'null\n', b'{"step": "4"}\n', b'\xff\xfe']
  history.write_bytes(b''.join([*lines[:3], *odd[:4], *lines[3:], odd[4]]))
  run = str(tmp_path / 'run')
  result = report.write(run, data_path=str(data))
  assert {pathlib.Path(f).stem for f in result['files']} >= PICTURES
  for number in (4, 5, 6, 7, len(lines) + 5):
    assert f'line {number} is no row' in caplog.text
  loaded = compare.load(run, 'run')
  assert loaded.rows == writers.read_rows(workdir)


def test_a_run_without_history_has_the_rest(trained, tmp_path):
  workdir, data = trained
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / writers.METRICS_FILE).unlink()
  result = report.write(str(tmp_path / 'run'), data_path=str(data))
  assert 'metrics' in result
  names = {pathlib.Path(file).stem for file in result['files']}
  assert 'curves' not in names
  assert 'confusion' in names
  text = pathlib.Path(result['page']).read_text()
  assert 'The run has no history' in text


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
  assert report.main(['--workdir', str(tmp_path)]) == 2
  assert 'has no history' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
