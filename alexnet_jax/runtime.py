"""Environment of JAX: XLA flags for GPUs and the cache of compiled programs.

The flags are given in XLA_FLAGS before JAX starts. An unknown one would end the
process, so each is looked up in the libraries that would read it; and none is
given unless there is a GPU. This module imports no jax.

What they change was seen in programs compiled for eight GPUs, and never timed:
all-reduces of over 85 % of the gradients' bytes, the dense layers', start
before any convolution's backward pass and are waited for at the update.
"""

from collections.abc import Mapping
import contextlib
import hashlib
import importlib.util
import mmap
import os
import pathlib
import platform
import sys
import time

from alexnet_jax import files

_CACHE_FOLDER = 'JAX_COMPILATION_CACHE_DIR'
_LEAST_SECONDS = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
_PLUGINS = ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')
_PLATFORMS = ('cuda', 'gpu')
# Where Linux shows NVIDIA's driver; the last one under WSL.
_DEVICES = ('/dev/nvidiactl', '/dev/nvidia0', '/dev/dxg')

FLAGS = {
  # Puts work between the start and the end of an all-reduce.
  'xla_gpu_enable_latency_hiding_scheduler': True,
  # With one at a time the dense layers wait for the convolutions.
  'xla_gpu_experimental_parallel_collective_overlap_limit': 16,
  # An all-reduce starts as soon as its gradients are there.
  'xla_gpu_experimental_collective_start_as_early_as_possible': True,
  # All-reduces are combined up to this size (30 MB otherwise): the largest stay
  # alone and need no copy, the head does not wait for the convolutions.
  'xla_gpu_all_reduce_combine_threshold_bytes': 4_000_000,
}


def flag_text(name: str, value: bool | int) -> str:
  """Returns a flag as it is written in XLA_FLAGS."""
  return f'--{name}={str(value).lower()}'  # true, not True


def xla_flags(environ: Mapping[str, str]) -> dict[str, str]:
  """Returns {'XLA_FLAGS': the user's and FLAGS}, to set before jax is imported.

  {} without a GPU or JAX's plugin for it, or where XLA_FLAGS names a file.
  """
  given = environ.get('XLA_FLAGS', '').strip()
  platforms = environ.get('JAX_PLATFORMS', '')
  wants_gpu = not platforms or set(_PLATFORMS) & set(platforms.split(','))
  has_gpu = any(map(os.path.exists, _DEVICES)) and plugin_libraries()
  if not (wants_gpu and has_gpu) or (given and not given.startswith('-')):
    return {}
  added = [flag_text(*flag) for flag in compiler_options(environ).items()]
  return {'XLA_FLAGS': ' '.join(filter(None, [given, *added]))} if added else {}


def compiler_options(environ: Mapping[str, str]) -> dict[str, bool | int]:
  """Returns those of FLAGS that XLA_FLAGS lacks and that every library knows.

  They are options of `jax.stages.Lowered.compile` as well.
  """
  given = environ.get('XLA_FLAGS', '').split()
  known = FLAGS.keys() - {part.lstrip('-').partition('=')[0] for part in given}
  common = [p for f in _folders('jaxlib') for p in f.glob('libjax_common*')]
  for library in (*plugin_libraries(), *common):
    with (
      library.open('rb') as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
      # With the end of the string: a longer name is another flag.
      known = {n for n in known if content.find(n.encode() + b'\0') >= 0}
  return {name: value for name, value in FLAGS.items() if name in known}


def plugin_libraries() -> list[pathlib.Path]:
  """Returns the installed libraries of XLA's compiler for CUDA."""
  folders = [folder for plugin in _PLUGINS for folder in _folders(plugin)]
  return [file for f in folders for file in sorted(f.glob('xla_cuda_plugin*'))]


def _folders(package) -> list[pathlib.Path]:
  try:
    spec = importlib.util.find_spec(package)
  except ModuleNotFoundError:  # of the package around it
    return []
  places = spec.submodule_search_locations if spec else None
  return [pathlib.Path(place) for place in places or ()]


def configure() -> None:
  """Sets XLA's flags for a GPU, and keeps compiled programs on disk.

  What the user has set in the environment stays. To be called before the first
  computation.
  """
  # XLA reads them when the first device is used.
  os.environ.update(xla_flags(os.environ))
  if _CACHE_FOLDER in os.environ:
    return
  try:
    folder = programs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      return
  except (OSError, RuntimeError):  # no home, or one that is read-only
    return
  os.environ[_CACHE_FOLDER] = str(folder)
  # A small network compiles many programs that take less than JAX's second.
  least = os.environ.setdefault(_LEAST_SECONDS, '0.1')
  if 'jax' in sys.modules:  # which reads the environment when it is imported
    import jax

    jax.config.update(_CACHE_FOLDER.lower(), str(folder))
    jax.config.update(_LEAST_SECONDS.lower(), float(least))


def process_seconds() -> float:
  """Returns the age of this process; 0 where the system does not tell it."""
  if not (stat := pathlib.Path('/proc/self/stat')).exists():
    return 0.0
  # Field 22 of proc(5), behind the name, which may have spaces.
  ticks = int(stat.read_text().rpartition(')')[2].split()[19])
  now = time.clock_gettime(time.CLOCK_BOOTTIME)
  return max(0.0, now - ticks / os.sysconf('SC_CLK_TCK'))


def platform_problem() -> str:
  """Returns why JAX has no device, if JAX_PLATFORMS is the reason; else ''."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if not platforms or 'jax' not in sys.modules:
    return ''
  import jax

  try:
    jax.devices()
  except Exception as error:
    reason = f'{error}'.strip().partition('\n')[0] or type(error).__name__
    return (
      f'JAX_PLATFORMS is {platforms!r}, and there is no such device ({reason});'
      ' leave it out, or set it to cpu'
    )
  return ''


def programs_folder() -> pathlib.Path:
  """Returns the folder of compiled programs, one for each kind of machine.

  Programs are of a CPU's instructions, and machines may share a home. Raises
  RuntimeError if there is neither a home nor XDG_CACHE_HOME.
  """
  return files.cache_folder() / f'programs_{_machine()}'


def _machine():
  kind = [platform.machine(), platform.processor()]
  with contextlib.suppress(OSError):  # it is Linux that has the file
    lines = pathlib.Path('/proc/cpuinfo').read_text().partition('\n\n')[0]
    names = ('model name', 'flags', 'Features')
    kind += [line for line in lines.splitlines() if line.startswith(names)]
  return hashlib.sha256('\n'.join(kind).encode()).hexdigest()[:12]
