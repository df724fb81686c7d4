"""The paper's figures and tables of small runs, and what their layers see."""

import itertools
import pathlib
import statistics

import numpy as np
import pytest

import alexnet_jax
from alexnet_jax.evaluation import ensemble, evaluate, paper, report, visualize
from tests import browser
from tests.data import pictures
from tests.evaluation.conftest import write_splits
from tests.system import commands


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """{name: folder}: two seeds each of two towers and of one, on noise."""
  folder, found = tmp_path_factory.mktemp('paper'), {}
  write_splits(folder / 'data', 28, 40)
  recipe = commands.write_recipe(
    folder,
    data__source='folder',
    data__path=str(folder / 'data'),
    data__random_flip=False,
    model__groups=(1, 2),
    num_steps=3,
    eval_every_steps=3,
  )
  for towers, seed in itertools.product((2, 1), (0, 1)):
    changes = f'--config.seed={seed}', f'--config.model.groups=(1,{towers})'
    found[f'{towers}_{seed}'] = folder / f'run_{towers}_{seed}'
    commands.train_here(recipe, found[f'{towers}_{seed}'], *changes)
  return found


def test_figures_and_tables_are_of_the_run(runs, call):
  first, second = runs['2_0'], runs['2_1']
  others = *runs.values(), second
  networks = ('--workdir', first, '--ensemble', second, '--ablations', *others)
  result, _ = commands.done(call(paper, *networks))
  data = first.parent / 'data'
  joint = ensemble.measure([str(first), str(second)], crops=10)
  run = alexnet_jax.open_run(first)
  for name, wanted in (
    ('1 CNN, one crop', run.evaluate()),
    ('1 CNN, ten crops', run.evaluate(crops=10)),
    ('2 CNNs, ten crops', joint),
  ):
    errors = [1 - wanted['eval/top1'], 1 - wanted['eval/top5']]
    assert result['errors'][name] == pytest.approx(errors)
  # Figure 4: the best classes, and the nearest by brute force.
  assert len(result['answers']) == 8
  for row in result['answers']:
    assert row['class'] == pathlib.Path(row['image']).parent.name
    (answer,) = run.predict([row['image']])
    assert [name for name, _ in row['best']] == [name for name, _ in answer]
  training = sorted(map(str, (data / 'train').rglob('*.png')))
  rows = run.features(training, 'dense1').astype(float)
  assert len(result['nearest']) == 5
  for found in result['nearest']:
    query = run.features([found['image']], 'dense1')[0]
    gaps = [sum((row - query) ** 2) ** 0.5 for row in rows]
    order = sorted(range(len(gaps)), key=gaps.__getitem__)[:6]
    assert found['nearest'] == [training[n] for n in order]
    wanted = [gaps[n] for n in order]
    assert found['distances'] == pytest.approx(wanted, rel=1e-4)
  # The page.
  dom = browser.Dom(pathlib.Path(result['page']).read_text())
  rows = dom.tables['Table 2: one network and several'].rows
  cells = [cell.text for row in rows for cell in row]
  assert f'{1 - joint["eval/top1"]:.1%}' in cells
  assert not any('paper' in cell for cell in cells)
  assert [pathlib.Path(file).name for file in result['files']] == [
    *('filters_1.png', 'filters_2.png'),
    *('figure_4_left.png', 'figure_4_right.png'),
  ]
  # Ablations: two recipes of two seeds each, a run given twice counts once.
  base, towers = result['ablations']
  assert (base['changes'], base['seeds']) == ([], [0, 1])
  assert towers['changes'] == ['model.groups: (1, 2) -> (1, 1)']
  means = []
  for row, number in ((base, 2), (towers, 1)):
    errors = [
      1 - alexnet_jax.open_run(runs[f'{number}_{s}']).metrics['eval/top1']
      for s in (0, 1)
    ]
    means.append(statistics.mean(errors))
    spread = statistics.stdev(errors) / 2**0.5
    assert row['top1'] == pytest.approx([means[-1], spread])
  both = (base['top1'][1] ** 2 + towers['top1'][1] ** 2) ** 0.5
  assert towers['top1_difference'] == pytest.approx([means[1] - means[0], both])
  table = dom.tables['What a key changes'].rows
  assert table[2][-1].text == ''  # the paper had other towers


def test_what_is_published_stands_beside_imagenet_alone():
  """1,000 synsets are ImageNet's."""
  errors = {'1 CNN, one crop': (0.5, 0.25), '1 CNN, ten crops': (0.4, 0.2)}
  names = [f'n{number:08}' for number in range(1000)]
  first, second = (table.rows for table in paper.make_tables(errors, names))
  assert first[0] == ('this run, 1 CNN, one crop', '50.0%', '25.0%')
  assert ('paper, 1 CNN, ten crops', '40.7%', '18.2%') in first
  assert ('paper, 5 CNNs', '38.1%', '16.4%') in second
  for table in paper.make_tables(errors, names[1:]):
    assert all('this run' in row[0] for row in table.rows)


def test_the_nearest_rows_are_numbered_as_they_come():
  """Also where all of a batch could not be read."""
  rows = np.float32([[9], [3], [0], [4], [2], [1]])[..., None]
  counts = np.array([True, True, False, False, True, True])
  batches = [(counts[i : i + 2], rows[i : i + 2]) for i in (0, 2, 4)]
  found = paper.find_nearest(np.float32([[[0.5]], [[3]]]), batches, 2)
  np.testing.assert_allclose(found[0], [[0.5, 1.5], [0, 1]])
  np.testing.assert_array_equal(found[1], [[5, 4], [1, 4]])


def test_a_run_that_is_not_done_or_of_other_data_is_no_ablation(
  runs, tmp_path, call
):
  def end(step, _):
    if step == 3:
      raise KeyboardInterrupt

  recipe = commands.write_recipe(tmp_path, num_steps=4, eval_every_steps=1)
  with pytest.raises(KeyboardInterrupt):
    commands.train_here(recipe, tmp_path / 'run', on_step=end)
  line = '--workdir', runs['1_1'], '--ablations', tmp_path / 'run'
  commands.refused(call(paper, *line), 'run is not done')
  commands.train_here(recipe, tmp_path / 'run')
  commands.refused(call(paper, *line), 'has other data than')
  assert not (runs['1_1'] / 'paper').exists()


def test_what_layers_see(runs, call):
  workdir = runs['2_0']
  image = sorted((workdir.parent / 'data' / 'val').rglob('*.png'))[3]
  arguments = ('--workdir', workdir, '--layers', 'conv2', '--units', '5,2')
  old = pictures.write(workdir / 'visualize', {'conv1.png': b'', 'my.png': b''})
  result, _ = commands.done(call(visualize, *arguments, image))
  run = alexnet_jax.open_run(workdir)
  images = sorted(map(str, (workdir.parent / 'data' / 'val').rglob('*.png')))
  outputs = run.features(images, 'conv2')
  rows = result['layers'].pop('conv2')
  assert not result['layers']
  assert [row['unit'] for row in rows] == [5, 2]
  for row in rows:
    peaks = outputs[..., row['unit']].max((1, 2))
    order = np.argsort(-peaks, kind='stable')[: len(row['images'])]
    assert row['images'] == [images[n] for n in order]
    assert row['values'] == pytest.approx(peaks[order].tolist(), rel=1e-4)
    assert row['classes'] == [
      pathlib.Path(n).parent.name for n in row['images']
    ]
  (occluded,) = result['occlusion']
  (((name, probability), *_),) = run.predict([image])
  assert (occluded['image'], occluded['class']) == (str(image), name)
  assert occluded['probability'] == pytest.approx(probability, rel=1e-4)
  assert 0 < occluded['lowest'] < probability
  dom = browser.Dom(pathlib.Path(result['page']).read_text())
  assert dom.title == 'What layers see: run_2_0'
  # Pictures of other layers, from an earlier call, do not stay.
  names = {path.name for path in old.glob('*.png')}
  assert names == {'conv2.png', 'my.png', 'occlusion.png'}


def test_what_cannot_be_drawn_is_refused_before_anything_is_measured(
  runs, call, monkeypatch
):
  workdir = runs['2_0']
  monkeypatch.setattr(evaluate, 'measure_all', None)
  for command, more, message in (
    (visualize, ('--layers', 'conv3'), "no 'conv3'; there are conv1, conv2"),
    (visualize, ('--units', '8'), 'conv1 has the units 0 to 7, and no 8'),
    (visualize, (workdir / 'config.json',), 'config.json'),
    (visualize, (workdir.parent / 'data',), '40 images; give at most 32'),
    (paper, ('--ensemble', workdir), 'give it once'),
    (paper, ('--ablations', workdir.parent), 'is not the folder of a run'),
  ):
    commands.refused(call(command, '--workdir', workdir, *more), message)


def test_a_folder_of_seeds_is_an_ablation_in_the_keys_that_differ(
  runs, tmp_path
):
  changes = '--config.model.groups=(1,1)', '--config.num_steps=4'
  recipe = runs['1_0'].parent / 'recipe.py'
  commands.train_here(recipe, tmp_path / 'seed_0', *changes)
  rows = paper.compare_ablations(str(runs['1_0']), [str(tmp_path)])
  assert [row['changes'] for row in rows] == [[], ['num_steps: 3 -> 4']]
  assert rows[1]['runs'] == [str(tmp_path / 'seed_0')]


def test_a_report_has_both_if_asked(runs, call):
  line = ('--workdir', runs['1_0'], '--paper', '--visualize')
  result, _ = commands.done(call(report, *line))
  assert result['paper'].keys() == {'errors', 'answers', 'nearest'}
  assert result['visualize']['layers'].keys() == {'conv1', 'conv2'}
  names = {pathlib.Path(file).name for file in result['files']}
  assert {'filters.png', 'figure_4_left.png', 'conv1.png', 'conv2.png'} < names
  text = pathlib.Path(result['page']).read_text()
  assert '<h2>Figure 4, right</h2>' in text
  assert '<h2>What conv2 sees</h2>' in text
  assert '<h2>Occlusion</h2>' in text
