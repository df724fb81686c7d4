"""What is set before JAX starts: XLA flags, a place for compiled programs."""

import hashlib
import os
import pathlib
import platform
import sys

from alexnet_jax import xla_flags

_PLACE = 'JAX_COMPILATION_CACHE_DIR'
_LEAST_SECONDS = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'


def apply() -> None:
  """Sets XLA's flags for a GPU, and keeps compiled programs on disk.

  What the user has set in the environment stays: XLA_FLAGS, the place of the
  programs and JAX_ENABLE_COMPILATION_CACHE=false. To be called before the first
  computation.
  """
  # XLA reads them when the first device is used.
  os.environ.update(xla_flags.with_defaults(os.environ))
  enabled = os.environ.get('JAX_ENABLE_COMPILATION_CACHE', 'true').lower()
  if _PLACE in os.environ or enabled in ('false', '0', 'no', 'off'):
    return
  try:
    folder = programs_folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # no home, or one that is read-only
    return
  if not os.access(folder, os.W_OK):
    return
  values = {_PLACE: str(folder)}
  if _LEAST_SECONDS not in os.environ:
    # A small network compiles many programs that take less than JAX's second.
    values[_LEAST_SECONDS] = '0.1'
  os.environ.update(values)
  if 'jax' in sys.modules:  # which reads the environment when it is imported
    import jax

    for name, value in values.items():
      number = name == _LEAST_SECONDS
      jax.config.update(name.lower(), float(value) if number else value)


def programs_folder() -> pathlib.Path:
  """Where compiled programs are kept: alexnet_jax in the user's cache folder.

  Programs for a CPU are of its instructions, and a home may be shared by
  machines: each kind has its own folder.

  Raises:
    RuntimeError: if there is neither a home nor XDG_CACHE_HOME.
  """
  cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(cache) / 'alexnet_jax' / f'programs_{_machine()}'


def _machine():
  kind = [platform.machine(), platform.processor()]
  cpuinfo = pathlib.Path('/proc/cpuinfo')  # on Linux
  if cpuinfo.exists():
    kind += [
      line
      for line in cpuinfo.read_text().split('\n\n')[0].splitlines()
      if line.startswith(('model name', 'flags', 'Features'))
    ]
  return hashlib.sha256('\n'.join(kind).encode()).hexdigest()[:12]
