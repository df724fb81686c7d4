"""Programs written by hand, and small ones that are really compiled."""

import textwrap

import jax


def program(entry, *computations):
  """The text of a program: what stands in its entry, and what that calls."""
  called = '\n\n'.join(textwrap.dedent(text).strip() for text in computations)
  body = textwrap.indent(textwrap.dedent(entry).strip(), '  ')
  return (
    'HloModule hand, is_scheduled=true, entry_computation_layout={()->f32[]}\n'
    f'\n{called}\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n'
  )


def compiled(function, *arguments, **options):
  """The text of a function compiled for the CPU of these tests.

  Args:
    function: of arrays.
    *arguments: arrays or ShapeDtypeStructs.
    **options: of jax.jit.
  """
  return jax.jit(function, **options).lower(*arguments).compile().as_text()
