import json
import sys
import types

import pytest

from alexnet_jax.bench import end_to_end
from alexnet_jax.bench.__main__ import main
from alexnet_jax.training import checkpoint
from tests.system import commands


def test_the_loop_saves_while_it_is_timed(tmp_path, monkeypatch, capsys):
  """On a clock that only looking at it and saving move."""
  clock = types.SimpleNamespace(now=0.0)

  def perf_counter():
    clock.now += 1
    return clock.now

  def save(self, tree, *arguments, **options):
    clock.now += 100

  fake = types.SimpleNamespace(perf_counter=perf_counter)
  monkeypatch.setattr(end_to_end, 'time', fake)
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', save)
  # What a recipe may have that would be in the way.
  recipe = commands.write_recipe(tmp_path, eval_every_steps=2)
  line = f'end_to_end --json --config {recipe} --steps 4 --rounds 1'
  assert main([*line.split(), '--save_every', '2']) == 0
  out, err = capsys.readouterr()
  result = json.loads(out.splitlines()[-1])
  assert f'the {result["bottleneck"]} is the bottleneck' in err
  batch_size = commands.TINY['global_batch_size']
  assert result['checkpoints'] == 2
  assert result['step'] == [4 * batch_size]
  assert {'median', 'loop_share', 'headroom', 'machine'} <= set(result)
  assert result['resident']['steps'] == [1, 4]
  if sys.platform == 'linux':  # others hide it
    assert all(min(pair) > 10e6 for pair in result['resident']['bytes'])
  seconds = 4 * batch_size / result['loop'][0]
  assert seconds == pytest.approx(4 + 100 * 2)


def test_what_the_command_sets_is_not_for_the_user(capsys):
  assert main(['end_to_end', '--config.save_every_steps=5']) == 2
  assert '--config.save_every_steps=5: set by this command' in (
    capsys.readouterr().err
  )
