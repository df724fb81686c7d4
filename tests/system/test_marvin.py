"""Marvin on the digits that come with the package: its accuracy, and its use
in another process."""

import hashlib
import json
import statistics
import sys

import pytest

from alexnet_jax.evaluation import saved_run
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
  """A hash of what a saved run says of each validation image."""
  run = saved_run.load(workdir)
  loader = saved_run.make_eval_loader(run, 'validation')
  measured = measure.evaluate(
    run.steps.predict,
    run.state,
    build.make_eval_iter(run.config, loader, run.mesh),
    run.to_devices,
    num_examples=loader.source.num_examples,
  )
  said = measured.predictions
  assert said.classes.shape == (1000, 5)
  return hashlib.sha256(
    said.classes.tobytes() + said.probabilities.tobytes()
  ).hexdigest()


@pytest.mark.slow
def test_marvin_learns_the_digits_and_is_the_same_elsewhere(tmp_path):
  results = [
    commands.train(
      'configs/marvin.py',
      tmp_path / str(seed),
      f'--config.seed={seed}',
      '--config.report=false',
    )
    for seed in range(3)
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
