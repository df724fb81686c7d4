"""Center crops, ten crops and ensembles of whole runs, by the commands."""

import itertools

import jax
import numpy as np
import pytest

from alexnet_jax.evaluation import ensemble, evaluate, loading
from alexnet_jax.training import build
from tests.system import commands


def train(folder, name='run', **changes):
  """A few steps of a small network; the run's folder."""
  recipe = commands.write_recipe(folder, **{'num_steps': 10, **changes})
  commands.train_here(recipe, folder / name)
  return str(folder / name)


@pytest.fixture(scope='module')
def runs(small, tmp_path_factory):
  """Two runs on 15 validation images, which no batch divides."""
  folder = tmp_path_factory.mktemp('runs')
  changes = {**small, 'data__synthetic_examples': 60, 'save_every_steps': 5}
  return [
    train(folder, f'run:{seed}', seed=seed, model__dropout=0.0, **changes)
    for seed in (0, 1)
  ]


def probabilities(workdir, num_crops):
  """A plain loop over images and crops: ([examples, classes], labels)."""
  run = loading.load_network(workdir)
  loader = loading.make_eval_loader(run, 'validation')
  mean = build.stored_mean(run.config, workdir)
  state = jax.device_get(run.state)
  apply = jax.jit(state.apply_fn)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  size, rows, labels = run.config.data.crop_size, [], []
  for index in range(loader.source.num_examples):
    square, label = loader.square(index)
    free = loader.resize_size - size
    corners = (free // 2, free // 2), *itertools.product((0, free), (0, free))
    views = [square[t : t + size, x : x + size] for t, x in corners]
    views += [view[:, ::-1] for view in views]
    pixels = np.float32(views[:num_crops])  # one is the center
    pixels = (pixels - mean) / run.config.data.std
    logits = np.asarray(apply(variables, pixels), np.float64)
    powers = np.exp(logits)
    rows.append((powers / powers.sum(1, keepdims=True)).mean(0))
    labels.append(label)
  return np.array(rows), np.array(labels)


def check(values, mean, labels):
  """Compares measures with those of plain loops."""
  order = np.argsort(-mean, axis=1, kind='stable')
  own = mean[np.arange(len(labels)), labels]
  top5 = (order[:, :5] == labels[:, None]).any(1).mean()
  wanted = -np.log(own).mean(), (order[:, 0] == labels).mean(), top5
  found = [values[f'eval/{key}'] for key in ('loss', 'top1', 'top5')]
  assert found == pytest.approx(wanted, rel=1e-5)


def test_what_ten_crops_are_not_good_for_is_said(small, tmp_path, call):
  changes = {'data__crop_size': 28, 'data__random_flip': False}
  workdir = train(tmp_path, **{**small, **changes, 'num_steps': 1})
  _, _, err = call(evaluate, '--workdir', workdir, '--crops', '1')
  assert 'warning' not in err
  _, _, err = call(ensemble, workdir, workdir, '--crops', '10')
  assert f'{workdir}: half of the ten crops are mirrored' in err
  assert f'{workdir}: the ten crops are two' in err


def test_measuring_shows_how_far_it_is(runs, call, monkeypatch):
  """Without a terminal by a line now and then."""
  monkeypatch.setattr(evaluate, '_LINE_SECONDS', 1e-9)
  _, _, err = call(ensemble, *runs)
  assert 'evaluation: 8 of 15 images' in err


@pytest.mark.parametrize(('crops', 'count'), [('1', 1), ('10', 10)])
def test_an_ensemble_averages_probabilities(runs, call, crops, count):
  _, values, _ = call(ensemble, *runs, '--crops', crops)
  each = [probabilities(workdir, count) for workdir in runs]
  labels = each[0][1]
  check(values, (each[0][0] + each[1][0]) / 2, labels)
  assert values['examples'] == len(labels)
  for member, (own, _) in zip(values['members'], each, strict=True):
    check(member, own, labels)
  # Neither is the other, nor what they say together.
  losses = {round(m['eval/loss'], 5) for m in (values, *values['members'])}
  assert len(losses) == 3


def test_checkpoints_of_one_run_are_members(runs, call):
  """Also of a folder whose name has a colon."""
  _, values, _ = call(ensemble, f'{runs[0]}:5', runs[0])
  assert [member['step'] for member in values['members']] == [5, 10]


def test_members_must_be_measured_on_the_same(runs, small, tmp_path, call):
  changes = {'data__synthetic_classes': 4, 'num_steps': 1}
  other = train(tmp_path, **small | changes)
  for members, message in (
    ([runs[0], other], f'the classes of {other} are not those'),
    ([runs[0], runs[0]], f'{runs[0]} is the network of {runs[0]}; give it'),
    ([], 'together: 0;'),
    ([runs[0], f'{runs[1]}:7'], "checkpoint '7' is not in"),
    ([runs[0], str(tmp_path / 'none')], 'is not the folder of a run'),
  ):
    err = commands.refused(call(ensemble, *members), message)
    assert 'top-1' not in err  # before anything is measured


def test_ties_and_certainty_rank_as_in_training():
  mean = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
  values = ensemble.joint_values(mean, np.array([1, 0]))
  assert (values['eval/top1'], values['eval/top5']) == (0, 1)
  least = np.finfo(np.float32).tiny
  assert values['eval/loss'] == pytest.approx(-np.log(0.5 * least) / 2)
