"""For commands that are called in the process of the tests."""

import csv

import pytest

from tests.data import pictures

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


def write_splits(root, num_train, count, classes='ab'):
  """Writes noise into train and, from number `num_train` on, val; returns root.

  The classes take turns, the numbers are the names.
  """
  for number in range(count):
    split = 'train' if number < num_train else 'val'
    name = f'{split}/{classes[number % len(classes)]}/{number:02}.png'
    pictures.write(root, {name: pictures.png(number)})
  return root


def read_csv(path):
  """Returns the rows of a table, the first of them its header."""
  with path.open(newline='', encoding='utf-8') as file:
    return list(csv.reader(file))


@pytest.fixture(scope='session')
def small():
  """Changes for `commands.write_recipe`."""
  return dict(_SMALL)


@pytest.fixture
def images(tmp_path):
  """A folder of noise: two classes of ten images."""
  return pictures.write(
    tmp_path / 'images',
    {f'{"ab"[i % 2]}/{i}.png': pictures.png(i) for i in range(20)},
  )


@pytest.fixture(autouse=True)
def signals_as_before(handlers):
  """Commands install handlers of their own."""
