"""Marvin on the digits that come with the package: its accuracy, and its use
in another process."""

import hashlib
import json
import statistics
import sys

import pytest

from alexnet_jax.training import build
from alexnet_jax.training import measure
from tests.system import commands

PROGRAM = """
import sys
sys.path.insert(0, '.')
from tests.system.test_marvin import predictions
print(predictions(sys.argv[1]))
"""


def predictions(workdir):
  """A hash of the predictions of a run for the validation images."""
  run = measure.load_network(workdir)
  loader = measure.make_eval_loader(run, 'validation')
  measured = measure.evaluate(
    run.steps.evaluate,
    run.state,
    build.make_eval_iter(run.config, loader, run.mesh),
    run.to_devices,
    num_examples=loader.source.num_examples,
  )
  found = measured.predictions
  assert found.classes.shape == (1000, 5)
  content = found.classes.tobytes() + found.probabilities.tobytes()
  return hashlib.sha256(content).hexdigest()


@pytest.mark.slow
def test_marvin_learns_the_digits_and_is_the_same_elsewhere(tmp_path):
  results = [
    commands.train(
      'configs/marvin.py',
      tmp_path / str(seed),
      f'--config.seed={seed}',
      '--config.report=false',
    )
    for seed in range(2)
  ]
  assert statistics.mean(r['eval/top1'] for r in results) >= 0.97
  workdir = str(tmp_path / '0')
  code, out, err = commands.run(
    *(sys.executable, '-m', 'alexnet_jax.evaluation.evaluate'),
    *('--workdir', workdir, '--json'),
  )
  assert code == 0, err
  again = json.loads(out)
  for key in ('eval/loss', 'eval/top1', 'eval/macro_f1', 'state_digest'):
    assert again[key] == results[0][key]
  code, out, err = commands.run(sys.executable, '-c', PROGRAM, workdir)
  assert code == 0, err
  assert out.strip() == predictions(workdir)
