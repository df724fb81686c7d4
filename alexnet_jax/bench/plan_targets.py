"""Descriptions of GPUs that `bench plan` compiles for without having them."""

from collections.abc import Sequence
import dataclasses
import pathlib
import tomllib

from alexnet_jax import runtime
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

_FOLDER = pathlib.Path(__file__).parent / 'targets'
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob('*.toml')))
# Of each figure the unit.
FIGURES = {
  'memory': 'bytes',
  'memory_bandwidth': 'bytes/s',
  'bfloat16_peak': 'FLOP/s',
  'float32_peak': 'FLOP/s',
  'link_bandwidth': 'bytes/s',
}


@dataclasses.dataclass(frozen=True)
class Figure:
  """A number about a GPU.

  Attributes:
    value: of it.
    unit: bytes, bytes/s or FLOP/s.
    source: where it is from.
  """

  value: float
  unit: str
  source: str


@dataclasses.dataclass(frozen=True)
class Target:
  """A GPU.

  Attributes:
    name: of it.
    xla: XLA's description, GpuTargetConfigProto in text form.
    figures: {name: Figure} of FIGURES. link_bandwidth is that of one GPU to the
      others in one direction; the peaks are those of matrix products.
  """

  name: str
  xla: str
  figures: dict[str, Figure]

  def value(self, figure: str) -> float:
    """The number that a figure is."""
    return self.figures[figure].value


def load(name: str) -> Target:
  """Reads a description.

  Args:
    name: one of NAMES, or the path of a description: a TOML file such as those
      in alexnet_jax/bench/targets.

  Raises:
    UserError: if there is none, or something is missing in it.
  """
  path = _FOLDER / f'{name}.toml' if name in NAMES else pathlib.Path(name)
  if not path.is_file():
    raise UserError(
      f'--target is {name!r}: neither {" nor ".join(NAMES)} nor a file; a'
      f' description looks like {_FOLDER / "h100.toml"}'
    )
  try:
    content = tomllib.loads(path.read_text())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise UserError(f'--target {path} is no TOML file: {error}') from error
  try:
    figures = {key: _figure(path, key, content[key]) for key in FIGURES}
    target = Target(content['name'], content['xla']['target'], figures)
  except KeyError as error:
    raise UserError(
      f'--target {path} lacks {error}; it needs {_needed()}'
    ) from error
  except TypeError as error:
    raise UserError(
      f'--target {path}: xla must be a table with a text called target'
    ) from error
  return target


def _figure(path, key, given):
  fields = [field.name for field in dataclasses.fields(Figure)]
  if not isinstance(given, dict) or sorted(given) != sorted(fields):
    raise UserError(
      f'--target {path}: {key} is {given!r}; it must be a table of'
      f' {", ".join(fields)}'
    )
  figure = Figure(**given)
  number = isinstance(figure.value, int | float) and figure.value > 0
  if not number or isinstance(figure.value, bool):
    raise UserError(
      f'--target {path}: the value of {key} is {figure.value!r}; it must be a'
      ' number above 0'
    )
  if figure.unit != FIGURES[key]:
    raise UserError(
      f'--target {path}: the unit of {key} is {figure.unit!r}; give its value'
      f' in {FIGURES[key]}'
    )
  return figure


def _needed() -> str:
  return f'name, {", ".join(FIGURES)} and xla.target, as {_FOLDER}/h100.toml'


def devices(target: Target, count: int) -> Sequence:
  """Devices to compile for, none of them real.

  Args:
    target: what each of them is.
    count: how many, all in one machine.

  Raises:
    UserError: if XLA for CUDA is not installed, or XLA cannot read the
      description.
  """
  import jax
  from jax.experimental import topologies

  if not runtime.plugin_libraries():
    raise UserError(
      "compiling for a GPU needs XLA's compiler for CUDA, though no GPU:"
      f' {how_to_install("cuda12")}'
    )
  # Nothing of this runs on a GPU, even where there is one.
  jax.config.update('jax_platforms', 'cpu')
  try:
    return topologies.get_topology_desc(
      *('gpu', 'cuda'), target_config=target.xla, topology=f'1x1x{count}'
    ).devices
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f'XLA cannot read the description of {target.name}: {error}'
    ) from error
