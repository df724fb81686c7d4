"""Memory in huge pages, where Linux gives them on request only.

XLA's CPU client allocates a step's temporaries anew in every step, and glibc
gives memory of that size back to the kernel at once: a step of the one-tower
network with 32 images touched 160,000 new pages of 4 KiB, and about 1,000 huge
ones with glibc.malloc.hugetlb=1, which took an eighth off its time. glibc reads
that tunable when a process begins, and there is no call for it, so a command
that is to have it starts itself once more. This module imports no jax.
"""

from collections.abc import Mapping
import contextlib
import os
import pathlib
import sys

_TUNABLES = 'GLIBC_TUNABLES'
_NAME = 'glibc.malloc.hugetlb'
_SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
_FIRST_GLIBC = (2, 35)


def with_defaults(environ: Mapping[str, str]) -> dict[str, str]:
  """What to set in the environment of a process that computes on the CPU.

  Args:
    environ: of the process.

  Returns:
    {'GLIBC_TUNABLES': the user's and glibc.malloc.hugetlb=1}; {} if there is
    nothing to add: the user has set it to whatever value, the kernel does not
    ask for it (huge pages always or never), or the C library has no such thing.
  """
  given = environ.get(_TUNABLES, '')
  if f'{_NAME}=' in given or not _on_request() or not _glibc_has_it():
    return {}
  return {_TUNABLES: ':'.join(filter(None, [given, f'{_NAME}=1']))}


def restart() -> None:
  """Starts this command once more with `with_defaults`, if that adds anything.

  The process stays the same one, with its number, files and parents. To be
  called before anything else is done.
  """
  if added := with_defaults(os.environ):
    arguments = [sys.executable, *sys.orig_argv[1:]]
    # Without it the command runs as well, but slower.
    with contextlib.suppress(OSError):
      os.execve(sys.executable, arguments, {**os.environ, **added})


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
