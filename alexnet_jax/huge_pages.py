"""Memory in huge pages, where Linux gives them on request only.

XLA's CPU client allocates a step's temporaries anew in every step, and glibc
gives memory of that size back to the kernel at once: a step of the one-tower
network with 32 images touched 160,000 new pages of 4 KiB, and about 1,000 huge
ones with glibc.malloc.hugetlb=1, which took a tenth off its time. glibc reads
that tunable when a process begins, and there is no call for it, so a command
that is to have it starts itself once more. This module imports no jax.
"""

from collections.abc import Mapping
import contextlib
import os
import pathlib
import sys

from alexnet_jax import xla_flags

_TUNABLES = 'GLIBC_TUNABLES'
_MARK = '_ALEXNET_JAX_STARTED_AGAIN'  # by the process of this number
_NAME = 'glibc.malloc.hugetlb'
_SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
_FIRST_GLIBC = (2, 35)


def with_defaults(environ: Mapping[str, str]) -> dict[str, str]:
  """What to set in the environment of a process that computes on the CPU.

  Args:
    environ: of the process.

  Returns:
    {'GLIBC_TUNABLES': the user's and glibc.malloc.hugetlb=1}; {} if there is
    nothing to add: a GPU computes, the user has set it to whatever value, the
    kernel gives huge pages always or never, or the C library has no such thing.
  """
  given = environ.get(_TUNABLES, '')
  if xla_flags.wants_gpu(environ):
    return {}
  if f'{_NAME}=' in given or not _on_request() or not _glibc_has_it():
    return {}
  return {_TUNABLES: ':'.join(filter(None, [given, f'{_NAME}=1']))}


def restart() -> None:
  """Starts this command once more with `with_defaults`, if that adds anything.

  The process stays the same one, with its number, parent and standard streams.
  To be called before anything else is done. Under a debugger, or if the command
  was not started as `python -m`, it goes on as it is, only slower.
  """
  added = with_defaults(os.environ)
  # A process with privileges of its own loses the tunables at its start.
  if not added or os.environ.get(_MARK) == str(os.getpid()):
    return
  if sys.gettrace() is not None or not _is_own_command():
    return
  environment = {**os.environ, **added, _MARK: str(os.getpid())}
  sys.stdout.flush()
  sys.stderr.flush()
  with contextlib.suppress(OSError):
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _is_own_command():
  """Whether all that this process does is the command that is running."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  if spec is None or not sys.executable:
    return False
  own = ['-m', spec.name.removesuffix('.__main__'), *sys.argv[1:]]
  before = len(sys.orig_argv) - len(own)
  # What is before it are options of Python, not another program's.
  return (
    sys.orig_argv[before:] == own
    and all(
      option.startswith('-') or sys.orig_argv[index] in ('-X', '-W')
      for index, option in enumerate(sys.orig_argv[1:before])
    )
    and '-m' not in sys.orig_argv[:before]
  )


def _on_request():
  try:
    return '[madvise]' in _SETTING.read_text()
  except OSError:
    return False


def _glibc_has_it():
  try:
    name, _, version = os.confstr('CS_GNU_LIBC_VERSION').partition(' ')
    return (
      name == 'glibc' and tuple(map(int, version.split('.'))) >= _FIRST_GLIBC
    )
  except (AttributeError, OSError, ValueError):  # another system or C library
    return False
