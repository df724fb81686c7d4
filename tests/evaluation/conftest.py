"""For commands that are called in the process of the tests."""

import signal

import numpy as np
import PIL.Image
import pytest

# For `commands.write_recipe`. Most of a tiny run is compilation: less of that.
# The mean of the pixels is part of a program: without it runs share theirs.
_SMALL = {
  'data__mean': 'none',
  'data__synthetic_examples': 30,
  'data__synthetic_classes': 3,
  'model__channels': (8,),
  'model__kernels': (3,),
  'model__strides': (2,),
  'model__paddings': ('SAME',),
  'model__groups': (1,),
  'model__pool_layers': (1,),
  'model__norm': 'none',
  'model__norm_layers': (),
  'model__bias_layers': (),
  'model__hidden': (8,),
}


@pytest.fixture(scope='session')
def small():
  """Changes for `commands.write_recipe`."""
  return dict(_SMALL)


@pytest.fixture
def images(tmp_path):
  """A folder of noise: two classes of ten images."""
  rng = np.random.default_rng(0)
  for number in range(20):
    path = tmp_path / 'images' / 'ab'[number % 2] / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
  return tmp_path / 'images'


@pytest.fixture(autouse=True)
def signals_as_before():
  """Commands install handlers of their own."""
  numbers = (signal.SIGTERM, signal.SIGINT)
  handlers = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, handlers, strict=True):
    signal.signal(number, handler)
