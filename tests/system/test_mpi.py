"""Open MPI starts the processes of a run."""

import shutil

import pytest

from tests.flags import fake_devices
from tests.system import commands
from tests.system import together

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    shutil.which('mpirun') is None,
    reason='no mpirun: apt-get install openmpi-bin',
  ),
]

# Bound to one core each, as mpirun does by itself, the processes would be slow,
# and XLA divide sums in another way than with two.
MPIRUN = ('mpirun', '-n', 2, '--bind-to', 'none', '--allow-run-as-root')


def test_mpirun_trains_what_the_flags_do(tmp_path):
  recipe = commands.write_recipe(tmp_path, num_steps=12)
  ended = commands.run(
    *(*MPIRUN, '--oversubscribe', *commands.MAIN, '--json'),
    *('--config', recipe, '--workdir', tmp_path / 'mpi'),
    env=fake_devices(1),
  )
  result = together.result([ended])
  assert '2 processes, 2 devices' in ended[2]
  assert result['step'] == 12
  flags = together.train(recipe, tmp_path / 'flags', 2)
  assert result['state_digest'] == flags['state_digest']
