"""For commands that are called in the process of the tests."""

import signal

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

_OPTIONS = {
  'jax_persistent_cache_min_compile_time_secs': 0,
  'jax_persistent_cache_min_entry_size_bytes': 0,
}


# For `commands.write_recipe`. Most of a tiny run is compilation: less of that.
# The mean of the pixels is part of a program, so that there is none.
_SMALL = {
  'histogram_every_evals': 0,
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


@pytest.fixture(scope='session')
def programs(tmp_path_factory):
  return tmp_path_factory.mktemp('programs')


@pytest.fixture(scope='module')
def compile_once(programs):
  """Keeps compiled programs in a folder: most of a tiny run is compilation.

  Returns:
    The environment with which processes use that folder, too.
  """
  options = {'jax_compilation_cache_dir': str(programs), **_OPTIONS}
  before = {name: getattr(jax.config, name) for name in options}
  compilation_cache.reset_cache()
  for name, value in options.items():
    jax.config.update(name, value)
  yield {name.upper(): str(value) for name, value in options.items()}
  compilation_cache.reset_cache()
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(autouse=True)
def signals_as_before():
  """Commands install handlers of their own."""
  numbers = (signal.SIGTERM, signal.SIGINT)
  handlers = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, handlers, strict=True):
    signal.signal(number, handler)
