"""Mounted file systems that outlive no test, not even a killed one."""

import contextlib
import subprocess

# Ends its wait when the pipe closes: a test does it, or the end of its process.
# A mount that stayed behind would be in the way of pytest's own cleaning.
_UNMOUNT = 'cat >/dev/null; umount "$1" || { umount --lazy "$1"; exit 1; }'


@contextlib.contextmanager
def mounted(folder, *arguments):
  """Mounts with `mount ARGUMENTS FOLDER`; unmounts at the end.

  Raises:
    subprocess.CalledProcessError: mount or umount failed.
  """
  command = ['mount', *map(str, arguments), str(folder)]
  subprocess.run(command, check=True, capture_output=True)
  try:
    # In a session of its own, which no kill of a group of processes reaches.
    unmount = subprocess.Popen(
      ['sh', '-c', _UNMOUNT, 'unmount', str(folder)],
      stdin=subprocess.PIPE,
      start_new_session=True,
    )
  except BaseException:
    subprocess.run(['umount', str(folder)], check=True)
    raise
  try:
    yield
  finally:
    unmount.stdin.close()
    if code := unmount.wait():
      raise subprocess.CalledProcessError(code, unmount.args)


def remount(folder, options):
  """Gives a mounted folder other options."""
  subprocess.run(['mount', '-o', f'remount,{options}', str(folder)], check=True)
