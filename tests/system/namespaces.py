"""What new namespaces of the kernel need on this machine."""

import shutil
import subprocess

import pytest


def skip_unless_possible(programs, packages: str, *namespaces: str) -> None:
  """Skips the test without these programs, or the right to new namespaces."""
  if missing := [name for name in programs if not shutil.which(name)]:
    pytest.skip(f'no {", ".join(missing)}: apt-get install {packages}')
  command = ['unshare', '--fork', *namespaces, 'true']
  if subprocess.run(command, capture_output=True, check=False).returncode:
    pytest.skip(f'namespaces need root: {" ".join(command)}')
