"""The Python examples of the READMEs, as they are printed."""

import re
import subprocess
import sys

import pytest

from tests.data.pictures import encode, photo, write
from tests.system import commands

NAMES = ['alexnet_jax/data/README.md']
NAMES += [pytest.param('README.md', marks=pytest.mark.slow)]


@pytest.mark.parametrize('name', NAMES)
def test_examples_run(name, tmp_path):
  paths = [f'photos/{name}/{i}.jpg' for name in ('a', 'b') for i in range(40)]
  write(tmp_path, dict.fromkeys(['photo.jpg', *paths], encode(photo())))
  text = (commands.ROOT / name).read_text()
  programs = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert programs
  for program in programs:
    program = program.replace('num_batches=1000', 'num_batches=2')
    subprocess.run([sys.executable, '-c', program], cwd=tmp_path, check=True)
