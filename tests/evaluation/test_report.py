import matplotlib.image
import numpy as np

from alexnet_jax.evaluation import report
from alexnet_jax.training import writers
from tests.system import commands


def history(folder):
  writer = writers.MetricWriter(folder, step=0, evaluated_step=0)
  for step in range(10, 101, 10):
    rate = 0.1 if step < 60 else 0.01
    writer.scalars(
      step,
      {'train/loss': 20 / step, 'train/top1': 0.5, 'learning_rate': rate},
    )
    writer.scalars(step, {'eval/loss': 30 / step, 'eval/top1': 0.4})
  writer.close()


def test_rate_drops_are_found(tmp_path):
  history(tmp_path)
  assert report.rate_drops(writers.read_rows(tmp_path)) == [60]


def test_the_command_draws_the_curves(tmp_path):
  history(tmp_path)
  assert report.main(['--workdir', str(tmp_path)]) == 0
  picture = matplotlib.image.imread(tmp_path / 'report' / 'curves.png')
  colours = {tuple(np.round(c, 1)) for c in picture.reshape(-1, 4)}
  assert len(colours) > 20  # lines, dots and letters, not a blank sheet


def test_a_folder_without_history_is_refused(tmp_path):
  code, _, err = commands.run(
    *(commands.MAIN[0], '-m', 'alexnet_jax.evaluation.report'),
    *('--workdir', tmp_path),
  )
  assert code == 2
  assert 'has no history' in err
