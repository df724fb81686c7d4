"""The Python examples of the READMEs, as they are printed."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

NAMES = ['alexnet_jax/data/README.md']
NAMES += [pytest.param('README.md', marks=pytest.mark.slow)]
ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize('name', NAMES)
def test_examples_run(name, tmp_path):
  rng = np.random.default_rng(0)
  paths = [f'photos/{name}/{i}.jpg' for name in ('a', 'b') for i in range(40)]
  for path in map(tmp_path.joinpath, ['photo.jpg', *paths]):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(path)
  text = (ROOT / name).read_text()
  programs = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert programs
  for program in programs:
    program = program.replace('num_batches=1000', 'num_batches=2')
    subprocess.run([sys.executable, '-c', program], cwd=tmp_path, check=True)
