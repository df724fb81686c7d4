"""The rooms of the package and the directions of their imports."""

import ast
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'alexnet_jax'

# What a room may import, all imports included that stand inside functions.
COMMON = {'errors', 'files', 'runtime', 'config', 'validation', 'cli'}
PARTS = COMMON | {'data', 'data.prepare', 'models', 'training'}
ALLOWED = {
  '': set(),
  'errors': set(),
  'runtime': {'errors', 'files'},
  'files': {'errors'},
  'data': {'errors', 'files'},
  'models': {'errors', 'files'},
  'config': {'errors', 'files', 'models'},
  'validation': {'errors', 'files', 'config', 'models'},
  'cli': COMMON,
  'data.prepare': COMMON | {'data'},
  'training': COMMON | {'data', 'models'},
  'evaluation': PARTS,
  'interop': PARTS | {'evaluation'},
  'predict': PARTS | {'evaluation'},
  'run': PARTS | {'evaluation', 'predict'},
  'main': PARTS | {'evaluation', 'predict', 'interop', 'run'},
  'bench': PARTS | {'evaluation', 'predict', 'interop', 'main'},
}


def module_of(path):
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(p for p in parts if p != '__init__')


MODULES = {module_of(path): path for path in PACKAGE.rglob('*.py')}


def room_of(module):
  if module.startswith('data.prepare'):
    return 'data.prepare'
  return module.partition('.')[0]


def imports(path):
  """Returns the modules of the package that a file imports anywhere."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    for name in names:
      package, _, rest = name.partition('.')
      if package == 'alexnet_jax':
        while rest and rest not in MODULES:  # a name inside a module
          rest = rest.rpartition('.')[0]
        found.add(rest)
  return found - {''}


@pytest.mark.parametrize('module', sorted(MODULES))
def test_a_module_imports_only_what_its_room_may(module):
  room = room_of(module)
  foreign = {m for m in imports(MODULES[module]) if room_of(m) != room}
  assert not {m for m in foreign if room_of(m) not in ALLOWED[room]}


def test_no_modules_import_each_other_in_a_circle():
  graph = {module: imports(path) for module, path in MODULES.items()}
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_tensorflow_is_imported_in_one_function():
  users = {
    module
    for module, path in MODULES.items()
    if not module.startswith('bench')
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Import)
    and any(alias.name.split('.')[0] == 'tensorflow' for alias in node.names)
  }
  assert len(users) <= 1
  assert all(module.startswith('data.prepare') for module in users)
