import sys

import pytest

from alexnet_jax import runtime
from tests.system import commands

LIMIT, EARLY, COMBINE = (
  'xla_gpu_experimental_parallel_collective_overlap_limit',
  'xla_gpu_experimental_collective_start_as_early_as_possible',
  'xla_gpu_all_reduce_combine_threshold_bytes',
)


@pytest.fixture
def gpu(tmp_path, monkeypatch):
  """A machine with a GPU and a plugin that knows all flags but one."""
  device = tmp_path / 'nvidia0'
  device.touch()
  names = [name for name in runtime.FLAGS if name != EARLY]
  names.append(f'{EARLY}_v2')
  library = tmp_path / 'xla_cuda_plugin.so'
  library.write_bytes(b''.join(name.encode() + b'\0' for name in names))
  monkeypatch.setattr(runtime, '_DEVICES', (str(device),))
  monkeypatch.setattr(runtime, 'plugin_libraries', lambda: [library])
  return device


def test_defaults_join_what_the_user_has_set(gpu):
  own = f'--xla_dump_to=/tmp/x --{COMBINE}=7'
  (text,) = runtime.xla_flags({'XLA_FLAGS': own}).values()
  flags = dict(part.split('=') for part in text.split())
  assert text.startswith(own)
  assert flags.pop('--xla_dump_to') == '/tmp/x'
  assert flags.pop(f'--{COMBINE}') == '7'
  assert flags.pop(f'--{LIMIT}') == '16'
  assert flags.pop('--xla_gpu_enable_latency_hiding_scheduler') == 'true'
  assert flags == {}  # the one that the plugin does not know is left out


@pytest.mark.parametrize('platforms', ['', 'cuda,cpu'])
def test_it_takes_a_gpu_and_its_plugin(gpu, platforms, monkeypatch):
  environ = {'JAX_PLATFORMS': platforms}
  added = runtime.xla_flags(environ)
  assert added['XLA_FLAGS'].startswith('--xla_gpu_')
  assert runtime.xla_flags(environ | added) == {}
  assert runtime.xla_flags({'JAX_PLATFORMS': 'cpu'}) == {}
  # A file, which XLA reads.
  assert runtime.xla_flags({'XLA_FLAGS': '/etc/xla_flags.txt'}) == {}
  gpu.unlink()
  assert runtime.xla_flags(environ) == {}
  gpu.touch()
  monkeypatch.setattr(runtime, 'plugin_libraries', list)
  assert runtime.xla_flags(environ) == {}


def test_this_jax_knows_them():
  """An unknown one would end the process; jaxlib reads those of GPUs, too."""
  flags = ' '.join(runtime.flag_text(*flag) for flag in runtime.FLAGS.items())
  code = 'import jax; print(int(jax.numpy.ones(3).sum()))'
  environ = {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  result = commands.run(sys.executable, '-c', code, env=environ)
  assert result[:2] == (0, '3\n'), result


def test_it_does_not_import_jax():
  code = 'import sys; from alexnet_jax import runtime;'
  code += ' runtime.xla_flags({}); print("jax" in sys.modules)'
  assert commands.run(sys.executable, '-c', code)[:2] == (0, 'False\n')
