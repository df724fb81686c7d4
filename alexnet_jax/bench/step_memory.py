"""How much memory this process has."""

import pathlib

_STATUS = pathlib.Path('/proc/self/status')  # on Linux


def resident_bytes(field: str) -> int | None:
  """Resident memory of this process; None where the system does not tell.

  Args:
    field: `VmHWM`, the largest so far, or `VmRSS`, that of now; see proc(5).
  """
  if not _STATUS.exists():
    return None
  for line in _STATUS.read_text().splitlines():
    if line.startswith(f'{field}:'):
      return 1024 * int(line.split()[1])
  return None
