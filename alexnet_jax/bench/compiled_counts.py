"""What a compiled train step does, counted in its text: one table."""

import dataclasses

from alexnet_jax.bench import compiled_kernels
from alexnet_jax.bench import compiled_reductions
from alexnet_jax.bench import compiled_schedule
from alexnet_jax.bench import compiled_text

_SUMS = ('read_bytes', 'written_bytes', 'workspace_bytes', 'flops')


@dataclasses.dataclass(frozen=True)
class Counts:
  """What one run of a program does on one device.

  Attributes:
    kernels: of the program, in the order of its schedule.
    reductions: collectives outside of loops, in the order of their starts.
    unknown_loops: names of loops that are counted once.
  """

  kernels: list[compiled_kernels.Kernel]
  reductions: list[compiled_reductions.Reduction]
  unknown_loops: list[str]

  def total(self, name: str) -> int:
    """Sum over the kernels: read_bytes, written_bytes, flops and such."""
    return sum(getattr(kernel, name) for kernel in self.kernels)

  @property
  def num_bytes(self) -> int:
    """Read and written."""
    return self.total('read_bytes') + self.total('written_bytes')

  def largest(self, count: int) -> list[compiled_kernels.Kernel]:
    """The kernels that move the most bytes."""
    return sorted(self.kernels, key=lambda k: -k.num_bytes)[:count]

  def to_json(self, largest: int = 10) -> dict:
    """A JSON object: sums, rows by layer, the largest kernels, collectives."""
    return {
      'kernels': len(self.kernels),
      'kernel_runs': sum(kernel.times for kernel in self.kernels),
      **{name: self.total(name) for name in _SUMS},
      'by_layer': compiled_kernels.by_layer(self.kernels),
      'largest': [dataclasses.asdict(k) for k in self.largest(largest)],
      'reductions': [
        self._reduction(reduction) for reduction in self.reductions
      ],
      'reduced_bytes': sum(each.num_bytes for each in self.reductions),
      'early_share': self._early_shares(),
      'unknown_loops': self.unknown_loops,
    }

  def _early_shares(self):
    """{conv5: share of the bytes that start before its backward pass, ...}."""
    if not self.reductions:
      return {}
    return {
      layer: compiled_reductions.early_share(
        self.reductions, self.kernels, layer
      )
      for layer in compiled_reductions.first_backward(self.kernels)
    }

  def _reduction(self, reduction):
    """The collective, and how much of the program lies before its ends."""
    row = dataclasses.asdict(reduction)
    first = compiled_reductions.first_backward(self.kernels)
    for end in ('before', 'until'):
      place = row[f'kernels_{end}']
      part = self.kernels[:place]
      row[f'traffic_{end}'] = _share(
        sum(k.num_bytes for k in part), self.num_bytes
      )
      row[f'flops_{end}'] = _share(
        sum(k.flops for k in part), self.total('flops')
      )
      row[f'convolutions_{end}'] = [
        layer for layer, begin in first.items() if begin < place
      ]
    return row


def _share(part, whole):
  return part / whole if whole else 0.0


def count(text: str) -> Counts:
  """Counts what a compiled program does.

  Args:
    text: of it, as `jax.stages.Compiled.as_text` gives it.

  Raises:
    ValueError: if it is no text of a program.
  """
  program = compiled_text.parse(text)
  kernels = compiled_kernels.kernels(program)
  return Counts(
    kernels,
    compiled_reductions.reductions(program, kernels),
    compiled_schedule.unknown_loops(program),
  )
