import json
import sys
import types

import pytest

from alexnet_jax import validation
from alexnet_jax.bench import end_to_end
from alexnet_jax.bench.__main__ import main
from alexnet_jax.training import checkpoint
from alexnet_jax.training import loop
from tests.some_slow import some_slow
from tests.system import commands


@pytest.mark.slow
def test_end_to_end_measures_all_three(tmp_path):
  recipe = commands.write_recipe(tmp_path)
  bench = (sys.executable, '-m', 'alexnet_jax.bench', 'end_to_end')
  arguments = f'--json --config {recipe} --steps 6 --rounds 3'
  code, out, err = commands.run(*bench, *arguments.split())
  assert code == 0, err
  result = json.loads(out)
  for name in ('step', 'loader', 'loop'):
    assert len(result[name]) == 3
    assert result['median'][name] == sorted(result[name])[1] > 0
  shares = zip(result['loop'], result['step'], strict=True)
  median = sorted(a / b for a, b in shares)[1]
  assert result['loop_share'] == pytest.approx(median)
  assert {'machine', 'command', 'versions', 'devices'} <= set(result)
  assert result['checkpoints'] == 1
  assert f'the {result["bottleneck"]} is the bottleneck' in err
  assert result['resident']['steps'] == [1, 6]
  if sys.platform == 'linux':  # others hide it
    assert all(min(pair) > 10e6 for pair in result['resident']['bytes'])


@pytest.mark.parametrize(
  ('steps', 'save_every', 'count'),
  some_slow([(6, 3, 2), (6, 1, 6), (1, 9, 0)], quick=[(6, 1, 6)]),
)
def test_the_loop_saves_while_it_is_timed(
  steps, save_every, count, tmp_path, monkeypatch
):
  """On a clock that only looking at it and saving move."""
  clock = types.SimpleNamespace(now=0.0)

  def perf_counter():
    clock.now += 1
    return clock.now

  def save(self, tree, *arguments, **options):
    clock.now += 100

  def unfreeze(run, state):
    assert run.durations.unfreeze_step == 0

  fake = types.SimpleNamespace(perf_counter=perf_counter)
  monkeypatch.setattr(end_to_end, 'time', fake)
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', save)
  # What a recipe may have that would be in the way.
  recipe = commands.write_recipe(
    tmp_path,
    eval_every_steps=2,
    histogram_every_evals=1,
    init__freeze=('conv1',),
    init__unfreeze_steps=4,
  )
  monkeypatch.setattr(loop.metrics, 'histograms', None)
  monkeypatch.setattr(loop, '_unfreeze_if_due', unfreeze)
  config = validation.load_config([f'--config={recipe}'])
  result = end_to_end.end_to_end(config, steps, 1, save_every)
  assert result['checkpoints'] == count
  seconds = steps * config.global_batch_size / result['loop'][0]
  assert seconds == pytest.approx(steps + 100 * count)


def test_what_the_command_sets_is_not_for_the_user(capsys):
  assert main(['end_to_end', '--config.save_every_steps=5']) == 2
  assert '--config.save_every_steps=5: set by this command' in (
    capsys.readouterr().err
  )


def test_the_bottleneck_is_the_slower_one_of_the_same_round():
  """The machine is ten times as fast in the second round."""
  step, loader = [100.0, 1000.0, 100.0], [50.0, 500.0, 20.0]
  found = end_to_end.bottleneck(step, loader)
  assert found == {'bottleneck': 'loader', 'headroom': 2.0}
  found = end_to_end.bottleneck(loader, step)
  assert found == {'bottleneck': 'step', 'headroom': 2.0}
